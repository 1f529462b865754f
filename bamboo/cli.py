"""The `bamboo` command: Lightning's verbs for training, and one typed function for each of the others."""

import sys
from importlib import import_module
from typing import Any

from bamboo.errors import InputError, unknown

TRAINING = {
    "fit": "train by a configuration: bamboo fit --config configs/pretrain/quickstart.yaml",
    "validate": "evaluate a checkpoint by its configuration",
    "test": "evaluate a checkpoint on the test set",
    "predict": "run a checkpoint over a data set",
}
COMMANDS = {
    "shapes": ("bamboo.commands:shapes", "list depths and widths, their parameters and FLOPs, and equal-cost ladders"),
    "reconstruct": ("bamboo.commands:reconstruct", "show what a masked autoencoder makes of your images"),
    "export": ("bamboo.commands:export", "write a checkpoint for timm, Hugging Face or the reference MAE code"),
}


def help_text() -> str:
    """What `bamboo --help` prints."""
    rows = [*TRAINING.items(), *((verb, text) for verb, (_, text) in COMMANDS.items())]
    verbs = "\n".join(f"  {verb:<12} {text}" for verb, text in rows)
    return (
        "usage: bamboo COMMAND [OPTIONS]\n\n"
        "How deep and how narrow should a transformer be?\n\n"
        f"commands:\n{verbs}\n\n"
        "`bamboo COMMAND --help` lists the options of a command."
    )


def main(args: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, or 2 with one line on standard error for bad input."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(help_text())
        return 0
    try:
        _run(args)
    except InputError as error:
        print(f"bamboo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: list[str]) -> None:
    verb, *rest = args
    if verb in TRAINING:
        from bamboo.lightning_cli import run

        run(args)
    elif verb in COMMANDS:
        _call(verb, rest)
    else:
        raise unknown("command", verb, [*TRAINING, *COMMANDS])


def _call(verb: str, args: list[str]) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    module, name = COMMANDS[verb][0].split(":")
    function = getattr(import_module(module), name)
    parser = ArgumentParser(prog=f"bamboo {verb}", description=COMMANDS[verb][1], exit_on_error=False)
    parser.add_function_arguments(function, as_positional=True)
    try:
        parsed = parser.parse_args(args)
    except ArgumentError as error:
        raise InputError(f"{error} (see bamboo {verb} --help)") from error
    return function(**parser.instantiate_classes(parsed).as_dict())

if __name__ == "__main__":
    sys.exit(main())
