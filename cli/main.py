"""The entry point: finds the command, parses its options, and reports errors in one line."""

import argparse
import contextlib
import ctypes
import errno
import importlib
import logging
import os
import re
import signal
import sys
import time
import warnings
from typing import NoReturn

from cli import __version__
from cli.options import NAME, PROGRAM
from files.errors import UserError, is_out_of_memory, unknown
from files.terminal import STOPPING, one_line, open_streams, protect_terminal

COMMANDS = {  # name of the module in cli/ -> what the command does
    "train": "train an adapter and measure it (the default)",
    "evaluate": "measure a model, with an adapter or without",
    "inspect": "read answers: wrong ones, one test set, two runs compared",
    "generate": "continue a text or answer an instruction",
    "chat": "talk with a model and its adapters in the terminal",
    "serve": "answer over HTTP, as OpenAI's server does, with any adapter in every request",
    "harness": "run tasks of lm-evaluation-harness",
    "compare": "which of several runs differ beyond chance, and in what",
    "referee": "train methods with equal budgets and say which differ beyond chance",
    "table": "train a grid of adapters and compare with the published figures",
    "plan": "memory and time of a run, before anything is downloaded",
    "models": "list the models that --model knows by name",
    "show": "draw a model's block with its sites, shapes and counts",
    "data": "list, fetch, show and check data sets",
    "merge": "fold an adapter into the weights, for transformers and vLLM",
    "export": "write an adapter in the format of PEFT or of the paper's code",
    "combine": "add, subtract and scale adapters into a new one",
    "distil": "let a LoRA learn what a trained adapter gives, to merge and serve it anywhere",
    "quantize": "write a model in 8 or 4 bits and measure the difference",
    "benchmark": "measure speed and memory of this machine",
    "pretrain": "train a pocket model from scratch",
}
UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)  # of a stream
PARALLEL = ("train", "evaluate")  # commands that torchrun may start


class UsageError(UserError):
    """The command line cannot be parsed; exit status 2."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"invalid int value: (.+)", r"\1 is not a whole number", message)
        message = re.sub(r"invalid float value: (.+)", r"\1 is not a number", message)
        raise UsageError(f"{message}; see: {self.prog} --help")

    def _print_message(self, message: str, file=None) -> None:
        """Print help or version; argparse's own swallows the error of a full disk."""
        (file or sys.stderr).write(message)


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status. Errors that the user can fix are one line on
    stderr; --debug shows their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # print ? where the terminal lacks a character
    protect_terminal()
    warnings.showwarning = lambda message, *_: print(
        f"{NAME}: {one_line(str(message))}", file=sys.stderr
    )
    debug = "--debug" in arguments
    try:
        command, options = parse(arguments)
        if debug:
            logging.basicConfig(format="%(name)s: %(message)s")
            logging.getLogger("model").setLevel(logging.DEBUG)
        check_current_folder()
        status = importlib.import_module(f"cli.{command}").run(options)
        sys.stdout.flush()
        return status
    except UsageError as error:  # under torchrun every process sees it: rank 0 prints it
        if os.environ.get("RANK", "0") == "0":
            print(f"{NAME}: {one_line(str(error))}", file=sys.stderr)
        wait_for_rank_0()
        return 2
    except BrokenPipeError:  # the reader of our output has ended
        drop_output()
        return 141
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            raise
        print(f"{NAME}: {one_line(message)}", file=sys.stderr)
        if isinstance(error, OSError):
            drop_output()
        return 1


def check_current_folder() -> None:
    """Raise UserError where it was removed: torch's libraries then end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder is gone ({error.strerror}): change it") from None


def drop_output() -> None:
    """Write what is left in stdout's buffer to nowhere: at the end it would be an error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: list[str]) -> tuple[str, argparse.Namespace]:
    """The command and its options. Raises UserError, UsageError for what is malformed."""
    for argument in arguments:
        if argument.encode(errors="ignore").decode() != argument:
            raise UserError(
                f"{argument!r} is not valid UTF-8, or LC_ALL is not: change its name or text"
            )
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    has_command = bool(arguments) and not arguments[0].startswith("-")
    command, rest = (arguments[0], arguments[1:]) if has_command else ("train", arguments)
    if command not in COMMANDS:
        error = str(unknown("command", command, COMMANDS))
        raise UsageError(f"{error}{' ' if error.endswith('?') else '; '}see: {PROGRAM} --help")
    parser = build_parser(command)
    options, extra = parser.parse_known_args(rest)
    if extra and extra[0] in COMMANDS:
        raise UsageError(f"the command comes first: {PROGRAM} {extra[0]} ...")
    if extra:
        known = [flag for action in parser._actions for flag in action.option_strings]
        hint = f"see: {PROGRAM} {command} --help"
        error = str(unknown(f"option of {command}", extra[0], known, listed=hint))
        raise UsageError(error if error.endswith(hint) else f"{error} {hint}")
    if command not in PARALLEL and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(f"{command} is for one process: start it with python, not with torchrun")
    return command, options


def build_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command of COMMANDS."""
    module = importlib.import_module(f"cli.{command}")
    text = COMMANDS[command]
    if command == "train":
        rows = "\n".join(f"  {name:11}{about}" for name, about in COMMANDS.items())
        text = (
            "Train adapters on frozen language models and measure what they gain.\n\n"
            f"commands:\n{rows}\n\n{PROGRAM} COMMAND --help lists the options of a command; "
            "those below are of train."
        )
    parser = Parser(
        prog=PROGRAM if command == "train" else f"{PROGRAM} {command}",
        usage="%(prog)s [COMMAND] [OPTION ...]" if command == "train" else None,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command == "train":
        parser.add_argument("--version", action="version", version=f"llm-adapters {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_options(parser)
    return parser


def explain(error: Exception) -> str | None:
    """One line for an error that the user can fix; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: pip install -r requirements.txt"
    if isinstance(error, UnicodeEncodeError):  # of a path: those of arguments are refused before
        return f"{error.object[:300]!r} cannot be written as UTF-8: rename the file or folder"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename!s:.200}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"the output cannot be written: {error.strerror}"
    if isinstance(error, MemoryError) and "torch" not in sys.modules:
        return "out of memory: there is not even room for Python and torch"
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        return "out of memory: use a smaller model or dtype, a smaller batch, or fewer tokens"
    return None


def wait_for_rank_0() -> None:
    """Give rank 0 time to print the error: torchrun ends all processes as soon as one has ended."""
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)


def leave(status: int) -> NoReturn:
    """Exit; one of several processes without Python's cleanup, during which gloo's threads may
    abort (https://github.com/pytorch/pytorch/issues/190489). A signal from now on ends it at once:
    an exception within that cleanup would be a traceback."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        sys.stdout.flush()  # of --help, which ends on its own
    except OSError as error:
        drop_output()
        print(f"{NAME}: {explain(error) or error}", file=sys.stderr)
        status = 1
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def keep_freed_memory() -> None:
    """Let glibc keep up to 128 MB that is free, in place of asking for it anew in every step: its
    own bounds grow with the largest block that was freed, and a small model's blocks are small."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return  # the user's own bounds
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the largest it can be
        mallopt(-1, 2**27)  # M_TRIM_THRESHOLD


def start() -> NoReturn:
    """Run the command line of this process: the `llm-adapters` script, and run.py."""
    # a card's memory in segments that grow: rows of other lengths in each step leave fewer gaps
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    keep_freed_memory()
    open_streams()
    # these end as an exception does: files are cleaned up and the way to resume is printed
    for number in STOPPING[1:]:  # Python's own handler of SIGINT raises KeyboardInterrupt
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores one
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        status = main(sys.argv[1:])
    except SystemExit as end:
        if end.code == 1:  # another process prints the error (train/parallel.py)
            wait_for_rank_0()
        status = end.code or 0
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print(f"{NAME}: interrupted", file=sys.stderr)
        status = 130
    leave(status)
