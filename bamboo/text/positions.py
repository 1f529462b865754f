"""Where tokens stand, told to attention: biases over distances, and rotation of queries and keys.

A bias B (heads, queries, keys) is added to the scores of attention. Each layer has parameters of its own for it, as in
the code published with DAPE. A distance is i - j under a causal mask and |i - j| without one, of query i and key j.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Positions = Literal["learned", "none", "rotary", "alibi", "kerple", "fire"]

IMPLEMENTATION = "bamboo"
"""What transformers knows the attention with these positions by, see `bamboo.text.attention`."""

FLOOR = 0.01
"""The least of Kerple's two parameters."""


class Alibi(nn.Module):
    """B = -s_h distance, with the slopes of `alibi_slopes` (Press et al. 2022). Nothing is learned."""

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, distance: Tensor, seen: Tensor | None) -> Tensor:
        """Biases (heads, queries, keys) of distances (queries, keys)."""
        return -self.slopes[:, None, None] * distance


def alibi_slopes(heads: int) -> list[float]:
    """The published slopes: 2^(-8/n), 2^(-16/n), ... for n heads.

    Where n is no power of two, those of the power below it, and then every other one of those of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2 ** (-8 * (head + 0.5) / power) for head in range(heads - power)]


class Kerple(nn.Module):
    """B = -p_h log(1 + a_h distance), the logarithmic kernel (Chi et al. 2022), where p and a are at least `FLOOR`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.p, self.a = nn.Parameter(2 * torch.rand(heads)), nn.Parameter(torch.rand(heads))

    def forward(self, distance: Tensor, seen: Tensor | None) -> Tensor:
        """Biases (heads, queries, keys) of distances (queries, keys)."""
        p, a = (_at_least(parameter, FLOOR)[:, None, None] for parameter in (self.p, self.a))
        return -p * torch.log1p(a * distance)


class Fire(nn.Module):
    """B = MLP(log(|c| distance + 1) / (log(|c| max(L, reach) + 1) + 1e-6)) (Li et al. 2024).

    The MLP is Linear(1, 32), ReLU, Linear(32, heads); c starts at 0.1, and the threshold L = |m L0| with m at 1. The
    reach of a query is the greatest distance of a key that it sees: under a causal mask that is i, its place in its
    document, as published; without one, where no paper says it, it keeps the quotient from exceeding one, too.
    """

    def __init__(self, heads: int, trained_length: int) -> None:
        super().__init__()
        self.trained_length = trained_length
        self.c, self.m = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(1.0))
        self.inner, self.outer = nn.Linear(1, 32), nn.Linear(32, heads)

    def forward(self, distance: Tensor, seen: Tensor | None) -> Tensor:
        """Biases (heads, queries, keys) of distances (queries, keys), or (B, heads, queries, keys) where masks differ.

        Args:
            distance: of queries and keys.
            seen: which keys a query sees, (queries, keys) or (B, 1, queries, keys); all, where it is left out.
        """
        reach = (distance if seen is None else distance * seen).amax(-1, keepdim=True)
        c, threshold = self.c.abs(), (self.m * self.trained_length).abs()
        farthest = torch.log1p(c * torch.maximum(threshold, reach)) + 1e-6
        share = (torch.log1p(c * distance) / farthest).to(self.inner.weight.dtype)
        hidden = F.relu_(mix(self.inner.weight, self.inner.bias, share.reshape(-1, 1, distance.numel())))
        biases: Tensor = mix(self.outer.weight, self.outer.bias, hidden).unflatten(2, distance.shape)
        return biases[0] if share.ndim == 2 else biases


def mix(weight: Tensor, bias: Tensor, channels: Tensor) -> Tensor:
    """A linear layer over the channels of (B, channels, pairs), which are not moved to the end: that takes longer."""
    batch = len(channels)
    return torch.baddbmm(bias[None, :, None].expand(batch, -1, 1), weight.expand(batch, -1, -1), channels)


def _at_least(parameter: Tensor, least: float) -> Tensor:
    """A parameter, raised where it is too low; its gradient is that of the raised one, so that it can rise again."""
    return parameter + (parameter.clamp(min=least) - parameter).detach()


def build_bias(positions: Positions, heads: int, trained_length: int) -> nn.Module | None:
    """The bias of a kind of positions; None for those that have none.

    Args:
        positions: the kind.
        heads: of attention.
        trained_length: tokens of a sequence in training, from which FIRE's threshold starts.
    """
    if positions == "fire":
        return Fire(heads, trained_length)
    kinds: dict[str, type[Alibi] | type[Kerple]] = {"alibi": Alibi, "kerple": Kerple}
    return kinds[positions](heads) if positions in kinds else None


def rotate(states: Tensor, start: int = 0, base: float = 10000.0) -> Tensor:
    """Queries or keys (B, heads, T, D), turned by their places `start`, `start` + 1, ... (Su et al. 2021).

    Feature k < D / 2 and feature k + D / 2 are the two coordinates that turn together, by base^(-2 k / D) a place.
    """
    length, width = states.shape[-2:]
    exact = torch.promote_types(states.dtype, torch.float32)
    places = torch.arange(start, start + length, device=states.device, dtype=exact)
    speeds = base ** (-torch.arange(0, width, 2, device=states.device, dtype=exact) / width)
    angles = places[:, None] * speeds
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    left, right = states.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class NoPositions(nn.Module):
    """Stands where a table of learned positions would, and adds nothing."""

    def forward(self, position_ids: Tensor) -> float:
        """Zero, whatever the places."""
        return 0.0
