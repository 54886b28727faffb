"""chat: talk with a model and its adapters in the terminal."""

import argparse
import shutil
import sys
from typing import TYPE_CHECKING

from cli.generate import SAMPLING, sampling_of
from cli.options import NAME, add
from cli.serve import add_served_model, served_settings
from files.errors import UserError
from files.terminal import one_line

if TYPE_CHECKING:  # importing it imports torch
    from serve.chat import Conversation

HELP = """\
/adapter NAME   let an adapter answer; without a name: list them
/base           let the base answer
/compare TEXT   the base's answer and the adapter's side by side; without text: to the last question
/system TEXT    what the model is told before everything; without text: nothing
/reset          forget what was said
/save FILE      write what was said, as data to train on
/help           this list
/quit           end, as Ctrl-D does; Ctrl-C stops an answer"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_served_model(parser)
    text = "a saved adapter, with a name or without; the last one answers first; may be repeated"
    add(parser, "adapters", {"--adapter NAME=FOLDER": (list, text)})
    decoding = {
        "--system TEXT": "what the model is told before everything",
        **SAMPLING,
        "--max-new-tokens N": (int, "maximum length of an answer (512)", 512),
    }
    add(parser, "decoding", decoding)


def run(options: argparse.Namespace) -> int:
    from eval.sampling import check
    from serve.chat import Conversation, toy_notes
    from serve.start import load

    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {options.max_new_tokens} should be 1 or more")
    if sampling := sampling_of(options):
        check(1, 1, sampling, [options.seed])
    loop, base = load(options.run, options.adapter, served_settings(options), slots=8)
    chat = Conversation(
        loop.start(), base, sampling, options.seed, options.max_new_tokens, options.system or ""
    )
    chat.adapter = next(reversed(loop.shelf.named), "")
    note("\n".join([f"{chat.name} answers; /help lists the commands", *toy_notes(base)]))
    refused = talk(chat)
    loop.stop()
    return int(refused and not sys.stdin.isatty())


def talk(chat: "Conversation") -> int:
    """Read lines and answer them until there are no more; returns how many only got an error."""
    refused = 0
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import contextlib

        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - input() edits lines by it
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
            if not is_terminal and not line:
                return refused
        except EOFError:
            print()
            return refused
        except KeyboardInterrupt:
            note("\n/quit or Ctrl-D ends")
            continue
        try:
            if not obey(chat, line.strip()):
                return refused
        except UserError as error:
            refused += 1
            note(f"{NAME}: {one_line(str(error))}")
        except KeyboardInterrupt:
            note("\nstopped")


def obey(chat: "Conversation", line: str) -> bool:
    """Answer a line, or do what it says. False: the end. Raises UserError."""
    from serve.chat import side_by_side

    if not line.startswith("/"):
        if line:
            for piece in chat.ask(line):
                print(piece, end="", flush=True)
            print()
        return True
    command, _, text = line.partition(" ")
    text = text.strip()
    if command in ("/adapter", "/base"):
        if command == "/adapter" and not text:
            print(", ".join(chat.loop.shelf.named) or "there is no adapter: start with --adapter")
            return True
        chat.switch(text if command == "/adapter" else chat.base)
        note(f"{chat.name} answers")
    elif command == "/compare":
        answers = chat.compare(text) if text else chat.compare_last()
        print(side_by_side(answers, shutil.get_terminal_size().columns))
    elif command == "/system":
        chat.system = text
    elif command == "/reset":
        chat.reset()
    elif command == "/save":
        if not text:
            raise UserError("/save FILE: give a name that ends in .jsonl")
        chat.save(text)
        note(f"written: {text}")
    elif command == "/help":
        print(HELP)
    elif command == "/quit":
        return False
    else:
        raise UserError(f"{command} is no command: /help lists them")
    return True


def note(text: str) -> None:
    """A line beside the answers: those alone go to stdout, so that they can be piped."""
    print(text, file=sys.stderr, flush=True)
