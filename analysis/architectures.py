"""Where things are in a transformer of timm, Hugging Face or torchvision: blocks, norms, branches, attention, prefix.

Only the names of submodules are looked at, so a model of one's own works where it uses the same names.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
OTHER_PREFIX = ("reg_token", "register_tokens", "dist_token", "distillation_token")


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


def find_stack(model: nn.Module, path: str | None = None) -> Stack:
    """The blocks of a model: the list at a path, or the one list of equal modules with attention that is no decoder.

    Raises:
        InputError: where there is no such list, or there are several, as in models that work in stages.
    """
    modules = dict(model.named_modules())
    lists = [name for name, module in modules.items() if _is_list(module)]
    if path is None:
        path = _only_stack(model, [name for name in lists if _has_attention(modules[name]) and "decoder" not in name])
    elif path not in modules:
        raise unknown("list of blocks", path, lists)
    elif path not in lists:
        raise InputError(f"{path!r} of {type(model).__name__} is not a list of modules")
    return Stack(path, list(modules[path].children()), _final_norm(modules, path))


def _only_stack(model: nn.Module, paths: list[str]) -> str:
    name = type(model).__name__
    if not paths:
        raise InputError(f"no list of transformer blocks found in {name}: name it with blocks=")
    if len(paths) > 1:
        raise InputError(
            f"{name} has {len(paths)} lists of blocks ({', '.join(paths[:4])}{', ...' if len(paths) > 4 else ''}): "
            "a model that merges tokens between stages has no one stream to follow; name one list with blocks="
        )
    return paths[0]


def _is_list(module: nn.Module) -> bool:
    kinds = {type(part) for part in module.children()}
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(kinds) == 1


def _has_attention(blocks: nn.Module) -> bool:
    names = (name.lower() for name, _ in next(blocks.children()).named_modules())
    return any("attn" in name or "attention" in name for name in names)


def _final_norm(modules: dict[str, nn.Module], path: str) -> nn.Module | None:
    """The norm beside the list of blocks, or beside what holds that list."""
    parent = path.rpartition(".")[0]
    for holder in dict.fromkeys((parent, parent.rpartition(".")[0])):
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


def find_branches(block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The modules at which the branches of a block show; None for a block of another make.

    Pre-norm: one module, whose input is the stream between the two branches. Post-norm: two, which normalise the sums
    of stream and attention and of stream and MLP.
    """
    middle, last = (part_of(block, name) for name in POST_NORMS)
    if isinstance(middle, nn.Module) and isinstance(last, nn.Module):
        return middle, last
    # Where branches end with a norm of their own, the stream between them is the input of the MLP, or of Gemma's norm.
    plain_mlp = has_normed_branches(block) and part_of(block, "pre_feedforward_layernorm") is None
    parts = (part_of(block, name) for name in (("mlp",) if plain_mlp else SECOND_NORMS))
    return next((part for part in parts if isinstance(part, nn.Module)), None), None


def has_normed_branches(block: nn.Module) -> bool:
    """Whether a branch is normalised before it is added, as in some blocks of timm, in Gemma 2 and in OLMo 2."""
    return "Post" in type(block).__name__ or part_of(block, "post_feedforward_layernorm") is not None


def find_attention(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module that reads the tokens and attends, and the one whose output is that of the heads together.

    Raises:
        InputError: where the block has no attention of a known name.
    """
    attention = next((part for name in ATTENTIONS if isinstance(part := part_of(block, name), nn.Module)), None)
    if attention is None:
        names = ", ".join(name for name, _ in block.named_children())
        raise InputError(f"no attention found in {type(block).__name__}: its parts are {names}")
    core = part_of(attention, "self") or part_of(attention, "attention")
    dense = part_of(attention, "output.dense")
    if isinstance(core, nn.Module) and isinstance(dense, nn.Module):
        return core, dense
    return attention, attention


def part_of(module: object, path: str) -> object | None:
    """An attribute by its path, such as `output.dense`; None where there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
