"""The one exception that means "what you gave me cannot work", and the near names it suggests."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input from a person: the command line prints its message as one line and exits with code 2."""


class Diverged(InputError):
    """A run whose loss, gradients or weights are no longer finite, though its data are."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not among `known`, with the nearest known names as a suggestion."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    some = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {some}"
    return InputError(f"unknown {kind} {name!r}: {hint}")


@contextmanager
def loading(name: str, hint: str = "") -> Iterator[None]:
    """Make one line of what timm and transformers raise, in many lines, for a model that they cannot load."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot be loaded ({reason}){hint}") from error
