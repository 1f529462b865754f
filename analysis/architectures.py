"""Where things are in a transformer of timm, Hugging Face or torchvision: blocks, norms, branches, attention, prefix.

Only the names of submodules are looked at, so a model of one's own works where it uses the same names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bamboo.errors import InputError, unknown

FINAL_NORMS = ("norm", "final_norm", "layernorm", "ln", "LayerNorm", "ln_f", "post_layernorm")
SECOND_NORMS = (
    "norm2",
    "layernorm_after",
    "mlp_norm",
    "ln_2",
    "layer_norm2",
    "intermediate.LayerNorm",
    "pre_feedforward_layernorm",  # Gemma, where a norm of the name below belongs to the branch
    "post_attention_layernorm",  # Llama, Mistral, Qwen
)
POST_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
ATTENTIONS = ("attn", "self_attention", "self_attn", "attention")
FUSED = ("qkv", "Wqkv", "in_proj_weight")
VALUES = ("value", "v_proj", *FUSED)
OUTPUTS = ("proj", "Wo", "out_proj", "o_proj")
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
OTHER_PREFIX = ("reg_token", "register_tokens", "dist_token", "distillation_token")
LAYER_SCALES = ("ls1.gamma", "layer_scale1.lambda1", "gamma_1")


@dataclass(frozen=True)
class Stack:
    """The list of blocks that one residual stream runs through, by its path in the model, and the norm at its end."""

    path: str
    blocks: list[nn.Module]
    norm: nn.Module | None


class Prefix(NamedTuple):
    """Tokens before the patches: whether the first is a class token, and how many others (registers) follow."""

    has_class: bool
    registers: int

    @property
    def length(self) -> int:
        """How many there are in all."""
        return int(self.has_class) + self.registers


class Branches(NamedTuple):
    """Where to see the branches of a block.

    Pre-norm: the input of `middle` is the stream between the two branches. Post-norm: `middle` and `last` normalise the
    sums of stream and branch.
    """

    middle: nn.Module
    last: nn.Module | None


def find_stack(model: nn.Module, path: str | None = None) -> Stack:
    """The blocks of a model: the one list of equal modules with attention in them, decoders left out.

    Args:
        model: any module.
        path: the list by name, such as `encoder.blocks`, where it cannot be found or there are several.

    Raises:
        InputError: where there is no such list, or there are several, as in models that work in stages.
    """
    modules = dict(model.named_modules())
    if path is not None:
        if path not in modules:
            raise unknown("list of blocks", path, [name for name, part in modules.items() if _is_list(part)])
        if not _is_list(modules[path]):
            raise InputError(f"{path!r} of {type(model).__name__} is not a list of modules")
    else:
        path = _only_stack(model, [name for name, part in modules.items() if _is_list(part) and _has_attention(part)])
    return Stack(path, list(modules[path].children()), _final_norm(modules, path))


def _only_stack(model: nn.Module, paths: list[str]) -> str:
    name = type(model).__name__
    paths = [path for path in paths if "decoder" not in path]
    if not paths:
        raise InputError(f"no list of transformer blocks found in {name}: name it with blocks=")
    if len(paths) > 1:
        raise InputError(
            f"{name} has {len(paths)} lists of blocks ({', '.join(paths[:4])}{', ...' if len(paths) > 4 else ''}): "
            "a model that merges tokens between stages has no one stream to follow; name one list with blocks="
        )
    return paths[0]


def _is_list(module: nn.Module) -> bool:
    parts = list(module.children())
    return isinstance(module, nn.ModuleList | nn.Sequential) and len({type(part) for part in parts}) == 1


def _has_attention(blocks: nn.Module) -> bool:
    names = (name.lower() for name, _ in next(blocks.children()).named_modules())
    return any("attn" in name or "attention" in name for name in names)


def _final_norm(modules: dict[str, nn.Module], path: str) -> nn.Module | None:
    """The norm beside the list of blocks, or beside what holds that list."""
    holder = path
    for _ in range(2):
        if not holder:
            break
        holder = holder.rpartition(".")[0]
        for name in FINAL_NORMS:
            norm = modules.get(f"{holder}.{name}" if holder else name)
            if norm is not None and not isinstance(norm, nn.Identity):
                return norm
    return None


def find_prefix(model: nn.Module) -> Prefix:
    """The class token, registers and the like that a vision model puts before its patches."""
    for module in model.modules():
        has_class = any(isinstance(getattr(module, name, None), Tensor) for name in CLASS_TOKENS)
        count = getattr(module, "num_prefix_tokens", None)
        if isinstance(count, int):
            return Prefix(has_class and count > 0, count - int(has_class and count > 0))
        others = [token for name in OTHER_PREFIX if isinstance(token := getattr(module, name, None), Tensor)]
        if has_class or others:
            return Prefix(has_class, sum(token.shape[1] for token in others))
    return Prefix(False, 0)


def find_branches(block: nn.Module) -> Branches | None:
    """Where the branches of a block show; None for a block of another make."""
    post = [_get(block, name) for name in POST_NORMS]
    if isinstance(post[0], nn.Module) and isinstance(post[1], nn.Module):
        return Branches(post[0], post[1])
    names = ("mlp",) if _norms_branches(block) and _get(block, "pre_feedforward_layernorm") is None else SECOND_NORMS
    middle = next((part for name in names if (part := _get(block, name)) is not None), None)
    return Branches(middle, None) if isinstance(middle, nn.Module) else None


def _norms_branches(block: nn.Module) -> bool:
    """Whether a branch is normalised before it is added, as in some blocks of timm, in Gemma 2 and in OLMo 2."""
    return "Post" in type(block).__name__ or _get(block, "post_feedforward_layernorm") is not None


def find_attention(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module that reads the tokens and attends, and the one whose output is that of the heads together.

    Raises:
        InputError: where the block has no attention of a known name.
    """
    part = next((found for name in ATTENTIONS if isinstance(found := _get(block, name), nn.Module)), None)
    if part is None:
        raise InputError(f"no attention found in {type(block).__name__}: its parts are {', '.join(_names(block))}")
    core = _get(part, "self") or _get(part, "attention")
    dense = _get(part, "output.dense")
    return (core, dense) if isinstance(core, nn.Module) and isinstance(dense, nn.Module) else (part, part)


@torch.no_grad()
def projection_norms(block: nn.Module, heads: int) -> tuple[float, float] | None:
    """sigma_1 and sigma_2: the largest spectral norms among the heads' value and output projections.

    With grouped queries there are fewer value projections than the `heads` of queries. None where attention is more
    than softmax and these two projections, so that the bound does not speak of it.
    """
    core, out = find_attention(block)
    extra = [getattr(core, name, None) for name in ("gate", "norm")]
    name, value = next(((n, w) for n in VALUES if (w := _weight(_get(core, n))) is not None), ("", None))
    output = (
        _weight(out)
        if core is not out
        else next((w for n in OUTPUTS if (w := _weight(_get(core, n))) is not None), None)
    )
    if value is None or output is None or any(part is not None and not isinstance(part, nn.Identity) for part in extra):
        return None
    inner = output.shape[1]  # the width of all heads together
    if name in FUSED:  # queries of that width come first, then as many keys as values
        value = value[-(len(value) - inner) // 2 :]
    values = value.float().reshape(-1, inner // heads, value.shape[1])
    outputs = output.float().reshape(-1, heads, inner // heads).transpose(0, 1)
    first, second = (torch.linalg.matrix_norm(part, ord=2).max().item() for part in (values, outputs))
    return first, second


@torch.no_grad()
def branch_scale(block: nn.Module) -> float:
    """The most that a layer scale multiplies what attention gives; 1 without one, NaN where a norm follows instead."""
    if _norms_branches(block):
        return float("nan")
    scale = next((found for name in LAYER_SCALES if isinstance(found := _get(block, name), Tensor)), None)
    return 1.0 if scale is None else scale.abs().max().item()


def _get(module: object, path: str) -> object | None:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _weight(part: object) -> Tensor | None:
    weight = part if isinstance(part, Tensor) else getattr(part, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _names(module: nn.Module) -> Iterator[str]:
    return (name for name, _ in module.named_children())
