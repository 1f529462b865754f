"""The `bamboo` command: Lightning's verbs for training, and one typed function for each of the others."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from inspect import signature
from io import StringIO
from typing import TYPE_CHECKING, Any, get_args, get_origin

from bamboo import __version__
from bamboo.errors import InputError, unknown

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

TRAINING = {
    "fit": "train by a configuration: bamboo fit --config pretrain/quickstart",
    "validate": "evaluate a checkpoint by its configuration",
    "predict": "run a checkpoint over a data set",
}
COMMANDS = {
    "shapes": ("bamboo.cli.commands:shapes", "list depths and widths, parameters and FLOPs, and equal-cost ladders"),
    "prepare": ("bamboo.vision.prepare:prepare", "turn images of any source into tar files of smaller JPEGs"),
    "reconstruct": ("bamboo.cli.commands:reconstruct", "show what a masked autoencoder makes of your images"),
    "profile": ("bamboo.analysis.command:profile_command", "measure how alike tokens grow with depth, in any model"),
    "knn": ("bamboo.finetune.commands:knn", "classify images by nearest neighbours on frozen features"),
    "probe": ("bamboo.finetune.commands:probe", "train a linear probe on every layer of a frozen encoder"),
    "score": ("bamboo.finetune.scoring:score", "accuracy and confusion matrix of predictions"),
    "export": ("bamboo.cli.commands:export", "write a checkpoint for timm, Hugging Face or the reference MAE code"),
    "tokenize": (
        "bamboo.text.commands:tokenize",
        "turn text into a packed corpus, with a vocabulary of its own or not",
    ),
    "fill": ("bamboo.cli.commands:fill", "let a language model fill in [MASK], or continue a text"),
    "glue": ("bamboo.finetune.glue.commands:glue", "fine-tune and score a text encoder on the tasks of GLUE"),
    "glue-compare": ("bamboo.finetune.glue.commands:glue_compare", "set the scores of two encoders side by side"),
    "study": ("bamboo.study.commands:study", "compare shapes, objectives and seeds, and judge the paper's claims"),
    "study-report": ("bamboo.study.commands:study_report", "merge finished studies into one report"),
    "scaling": ("bamboo.scaling.commands:scaling", "fit scaling laws to finished runs"),
}
"""Where the function of each verb is, and what it does."""
SHARED = ("profile", "knn", "probe")
"""Verbs that several processes can do together, besides those of training."""


def help_text() -> str:
    """What `bamboo --help` prints."""
    rows = [*TRAINING.items(), *((verb, text) for verb, (_, text) in COMMANDS.items())]
    verbs = "\n".join(f"  {verb:<12} {text}" for verb, text in rows)
    return (
        "usage: bamboo COMMAND [OPTIONS]\n\n"
        "How deep and how narrow should a transformer be?\n\n"
        f"commands:\n{verbs}\n\n"
        "`bamboo COMMAND --help` lists the options of a command, `bamboo --version` says which release this is."
    )


def main(args: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 2 with one line on standard error for bad input, 130 for Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help", "--version"):
        print(f"bamboo {__version__}" if args == ["--version"] else help_text())
        return 0
    try:
        if args[0] in TRAINING:
            from bamboo.fit.lightning import run

            run(args)
        elif args[0] in COMMANDS:
            _call_everywhere(*args)
        else:
            raise unknown("command", args[0], [*TRAINING, *COMMANDS])
    except BrokenPipeError:  # whoever reads, `head` for example, has seen enough
        sys.stderr.close()
    except InputError as error:
        print(f"bamboo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bamboo: interrupted", file=sys.stderr)
        return 130  # as shells have it for SIGINT
    return 0


def _call_everywhere(verb: str, *args: str) -> None:
    """On one process, or on all that `torchrun` started, of which only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _call(verb, *args)
        return
    if verb not in SHARED:
        raise InputError(f"bamboo {verb} is for one process: start it without torchrun")
    from bamboo.processes import is_first_process, joined

    with joined(), nullcontext() if is_first_process() else redirect_stdout(StringIO()):
        _call(verb, *args)


def _call(verb: str, *args: str) -> None:
    from jsonargparse import ArgumentError

    from bamboo.fit.parse_errors import one_line

    module, name = COMMANDS[verb][0].split(":")
    function = getattr(import_module(module), name)
    parser = make_parser(verb, function)
    if {"-h", "--help"} & set(args):
        print(re.sub(r"--[a-z_]+", lambda option: option[0].replace("_", "-"), parser.format_help()))
        return
    try:
        parsed = parser.parse_args([_underscored(word) for word in args])
    except ArgumentError as error:
        raise InputError(f"{one_line(str(error), (), parser.get_defaults().keys())} (bamboo {verb} --help)") from error
    function(**parser.instantiate_classes(parsed).as_dict())


def make_parser(verb: str, function: Callable[..., None]) -> "ArgumentParser":
    """Parameters before the `*` of a signature are positional, the rest options; a list takes one or more words."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"bamboo {verb}", description=COMMANDS[verb][1], exit_on_error=False)
    described = {entry.arg_name: entry.description for entry in parse(function.__doc__ or "").params}
    for name, parameter in signature(function, eval_str=True).parameters.items():
        options: dict[str, Any] = {"type": parameter.annotation, "help": described[name]}
        if get_origin(parameter.annotation) is list:
            options |= {"type": get_args(parameter.annotation)[0], "nargs": "+"}
        if parameter.default == []:
            options["action"] = "extend"  # which would extend a default that is not empty
        if parameter.annotation is bool:
            options = {"action": "store_true", "help": described[name]}
        if parameter.kind is not parameter.KEYWORD_ONLY:
            parser.add_argument(name, **options)
        elif parameter.default is parameter.empty:
            parser.add_argument(f"--{name}", required=True, **options)
        else:
            parser.add_argument(f"--{name}", default=parameter.default, **options)
    return parser


def _underscored(word: str) -> str:
    """`--head-dim` as the parameter `head_dim` that it stands for; either is fine."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
