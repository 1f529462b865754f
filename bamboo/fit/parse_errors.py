"""One line out of jsonargparse's many: which key is wrong, what was expected, and what was probably meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from jsonargparse import ArgumentParser

MISSPELT = re.compile(r"(?:Option '|[Uu]nrecognized arguments?: -*|Key ')([\w.]+)")
NOISE = re.compile(
    r"(Given value|Subtypes:|Errors:|Does not validate|Expected a <class 'NoneType'>|Parser key|Problem with given)"
)


def one_line(message: str, args: Iterable[str], known: Iterable[str] = ()) -> str:
    """The gist of a message about a command line, with near names of a misspelt option.

    Args:
        message: what jsonargparse says.
        args: the command line, whose classes are asked for their options.
        known: further options.
    """
    key = _key(re.findall(r'Parser key "([\w.]+)"', message))
    misspelt = MISSPELT.search(message)
    if misspelt:
        where, name = key or "the command line", misspelt[1]
        names = {*known} | {name.split(".")[-1] for path in _class_paths(args) for name in _parameters(path)}
        near = get_close_matches(name.split(".")[-1], names, n=1, cutoff=0.7)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"{where} has no option {name!r}{hint}"
    problem = re.search(r"Problem with given class_path.*?:\s*\n\s*([^\n]*)", message)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not NOISE.match(line.strip(" -"))]
    text = "; ".join(dict.fromkeys(lines)) or (problem[1].strip() if problem else message)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.Literal", "one of ")
    text = re.sub(r"Expected an? ", "expected ", text).replace(". Got value:", ", got")
    return f"{key}: {text}" if key else " ".join(text.split())


def _key(keys: list[str]) -> str:
    keys = [key for key in keys if key != "config"]
    if len(keys) > 1 and keys[0] in ("model", "data"):
        keys.insert(1, "init_args")
    return ".".join(keys)


def _class_paths(args: Iterable[str]) -> list[str]:
    text = "\n".join(args)
    return ["lightning.pytorch.Trainer", *re.findall(r"class_path: ([\w.]+)", text)]


def _parameters(class_path: str) -> list[str]:
    """Names of the options of a class, its own and those that it passes on."""
    module, _, name = class_path.rpartition(".")
    try:
        parser = ArgumentParser()
        parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
        return list(parser.get_defaults().keys())
    except (ImportError, AttributeError, ValueError):  # the message is about something else, no suggestion from here
        return []
