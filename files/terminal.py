"""Texts of other people on a terminal: control and direction characters are shown, not obeyed."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

REORDER = (
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction of writing, lines and paragraphs
)
UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{REORDER}]")
IN_A_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{REORDER}]")
LINE_ENDS = re.compile("[\n\r]")
LONGEST = 2_000  # characters of an error message
STOPPING = [  # Ctrl-C, kill, a terminal that is closed
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# A progress bar goes back to the start of its line, and several of them up.
BESIDE_BARS = re.compile(rf"\x1b(?!\[A)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f{REORDER}]")


def escaped(text: str, pattern: re.Pattern = UNSEEN) -> str:
    r"""The text with \x1b in place of an ESC, and so on; line feeds and tabs stay."""
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Shown:
    """A stream for people: texts are escaped on a terminal, and one that is gone is passed over.

    A terminal that was closed, or a full disk behind stderr, must not end a run.
    """

    def __init__(self, stream, pattern: re.Pattern):
        self.stream = stream
        self.pattern = pattern if stream.isatty() else None

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(escaped(text, self.pattern) if self.pattern else text)
        return len(text)

    def writelines(self, texts) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def protect_terminal() -> None:
    """Nothing that is printed from now on controls a terminal; files and pipes get it as it is."""
    if not isinstance(sys.stderr, Shown):
        sys.stderr = Shown(sys.stderr, BESIDE_BARS)
    if not isinstance(sys.stdout, Shown) and sys.stdout.isatty():
        sys.stdout = Shown(sys.stdout, UNSEEN)


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """In this block C and Rust print nothing on stderr: a panic's own lines precede its error."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def open_streams() -> None:
    """Put /dev/null in the place of a closed stdin, stdout or stderr, as cron and daemons leave."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def one_line(message: str) -> str:
    """An error message on one line of bounded length; for a terminal escaped, for a file with the
    characters that it has."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST - 500]} [...] {message[-500:]}"
    return escaped(message, IN_A_LINE if sys.stderr.isatty() else LINE_ENDS)
