"""One line out of jsonargparse's many: which key is wrong, what was expected, and what was probably meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from jsonargparse import ArgumentParser

MISSPELT = re.compile(r"(?:Option '|[Uu]nrecognized arguments?: -*|Key ')([\w.]+)")
NOISE = re.compile(
    r"[- ]*(Given value|Subtypes:|Errors:|Does not validate|Expected a <class 'NoneType'>|Parser key|Problem with)"
)


def one_line(message: str, args: Iterable[str], known: Iterable[str] = ()) -> str:
    """What a message of jsonargparse says, with the nearest name of a misspelt option.

    The options of the classes that the command line `args` names are known, and those of `known`.
    """
    key, misspelt = _key(message), MISSPELT.search(message)
    if misspelt is None:
        return f"{key}: {_reason(message)}" if key else _reason(message)
    names = {*known, *(name for path in _class_paths(args) for name in _options(path))}
    near = get_close_matches(misspelt[1].split(".")[-1], names, n=1, cutoff=0.7)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return f"{key or 'the command line'} has no option {misspelt[1]!r}{hint}"


def _key(message: str) -> str:
    """The key at fault: `model` and `recipe.eps`, which a message names apart, are `model.init_args.recipe.eps`."""
    keys = [key for key in re.findall(r'Parser key "([\w.]+)"', message) if key != "config"]
    if len(keys) > 1 and keys[0] in ("model", "data"):
        keys.insert(1, "init_args")
    return ".".join(keys)


def _reason(message: str) -> str:
    """What was expected, for every type that a value could have had, and what it was."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not NOISE.match(line)]
    reason = "; ".join(dict.fromkeys(lines)) or message
    reason = re.sub(r"<class '([\w.]+)'>", r"\1", reason).replace("typing.Literal", "one of ")
    reason = re.sub(r"Expected an? ", "expected ", reason).replace(". Got value:", ", got")
    value = re.search(r"Given value: (\w+)\s", message + "\n")
    if value and reason.startswith("expected") and ", got" not in reason:
        reason += f", got {value[1]}"
    return " ".join(reason.split())


def _class_paths(args: Iterable[str]) -> list[str]:
    return ["lightning.pytorch.Trainer", *re.findall(r"class_path: ([\w.]+)", "\n".join(args))]


def _options(class_path: str) -> list[str]:
    """Names of the options of a class, its own and those that it passes on."""
    module, _, name = class_path.rpartition(".")
    try:
        parser = ArgumentParser()
        parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
        return [key.split(".")[-1] for key in parser.get_defaults().keys()]  # noqa: SIM118 (it is no mapping)
    except (ImportError, AttributeError, ValueError):  # the message is about something else, no suggestion from here
        return []
