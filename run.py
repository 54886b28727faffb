"""The command line. `python run.py` alone trains an adapter on the pocket model and reports; `python run.py --help` lists the rest."""

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr
from typing import NoReturn

COMMANDS = {  # word -> (the package whose commands.py holds it, what it does)
    "train": ("train", "train an adapter and measure it (also without the word)"),
    "evaluate": ("eval", "measure a model, with an adapter or without"),
    "inspect": (
        "eval",
        "look at answers: the wrong ones, one set, what one run has right and another wrong",
    ),
    "harness": (
        "eval",
        "run tasks of lm-evaluation-harness on a model, with an adapter or without",
    ),
    "data": ("data", "list, fetch, show and check data sets; make rows of logs"),
    "generate": ("eval", "continue a prompt"),
    "merge": (
        "adapters",
        "fold a run's adapter into the weights: a folder that transformers reads too",
    ),
    "export": ("adapters", "write a run's adapter as PEFT or the paper's code reads it"),
    "combine": ("adapters", "add, subtract and scale adapters into a new one"),
    "models": ("model", "list the names --model knows, with parameters and sizes"),
    "quantize": (
        "train",
        "write a model with its weights in 8 or 4 bits, and measure what that costs",
    ),
    "show": (
        "adapters",
        "draw a model's block with its sites, shapes and counts; needs no weights",
    ),
    "table": (
        "eval",
        "train a grid of adapters on models and put them beside the published figures",
    ),
    "plan": ("train", "say what a run needs, and whether it fits, before anything is downloaded"),
    "benchmark": ("train", "measure speed and memory of this machine"),
    "pretrain": ("train", "train a pocket model from scratch"),
}


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    rest = arguments[1:] if arguments and arguments[0] == command else arguments
    from files.errors import UserError, is_out_of_memory, unknown

    if command not in COMMANDS:
        print(f"run.py: {unknown('command', command, COMMANDS)}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character shows ? instead
    warnings.showwarning = lambda message, *_: print(f"run.py: {message}", file=sys.stderr)
    told = (
        sys.stderr if os.environ.get("RANK", "0") == "0" else io.StringIO()
    )  # under torchrun all read the same line, and one speaks of it
    with redirect_stderr(told):
        parser, act = build(command)
        options, extra = parser.parse_known_args(rest)
    wrong = None
    if extra and extra[0] in COMMANDS:
        wrong = f"the command comes first: python run.py {extra[0]} ..."
    elif extra:
        wrong = unknown(
            f"option of {command}",
            extra[0],
            [option for action in parser._actions for option in action.option_strings],
        )
    elif command not in ("train", "evaluate") and os.environ.get("WORLD_SIZE", "1") != "1":
        wrong = f"{command} is for one process: start it with python, not with torchrun"
    if wrong:
        print(f"run.py: {wrong}", file=told)
        let_another_speak()
        return 1
    if options.debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("model").setLevel(logging.DEBUG)
    try:
        return act(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if options.debug or not is_out_of_memory(error):
            raise
        print(
            "run.py: out of memory: use a smaller model or dtype, fewer rows at once, or fewer tokens",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def build(command: str):
    """(the parser of a command, the function that carries out its options)."""
    package, text = COMMANDS[command]
    if command == "train":
        text += "; other commands: " + ", ".join(
            f"{key} ({said})" for key, (_, said) in COMMANDS.items() if key != "train"
        )
    parser = argparse.ArgumentParser(
        prog="run.py" if command == "train" else f"run.py {command}",
        description=text,
        allow_abbrev=False,
    )
    act = importlib.import_module(f"cli.{package}_commands").COMMANDS[command](parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, act


def run() -> int:
    """`main`, where what ends it before it can say so is told in a line as well."""
    try:
        return main(sys.argv[1:])
    except SystemExit as end:
        if end.code in (1, 2):
            let_another_speak()
        return end.code
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("run.py: interrupted", file=sys.stderr)
        return 130
    except MemoryError:  # before the command has begun
        if "--debug" in sys.argv:
            raise
        print("run.py: out of memory: not even Python and torch have room here", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if "--debug" in sys.argv:
            raise
        print(
            f"run.py: the package {error.name} is missing: pip install -r requirements.txt",
            file=sys.stderr,
        )
        return 1


def let_another_speak() -> None:
    """One of several processes ends without a word, as another has the same to say: torchrun ends all as soon as one has ended, and would cut that one off.
    It ends this one, too, when that one has spoken."""
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)


def leave(status: int) -> NoReturn:
    """End this process. One of several ends at once: while Python takes itself apart, gloo's threads may let go of their last tensors, and abort it
    (https://github.com/pytorch/pytorch/issues/190489)."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # what is being written is cleaned up, and the way to go on is told
    leave(run())
