"""Texts of other people on a terminal: control and direction characters are shown, not obeyed."""

import re
import sys

REORDER = (
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction of writing, lines and paragraphs
)
UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{REORDER}]")
IN_A_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{REORDER}]")
# A progress bar goes back to the start of its line, and several of them up.
BESIDE_BARS = re.compile(rf"\x1b(?!\[A)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f{REORDER}]")


def escaped(text: str, pattern: re.Pattern = UNSEEN) -> str:
    r"""The text with \x1b in place of an ESC, and so on; line feeds and tabs stay."""
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Terminal:
    """A stream to a terminal that writes texts escaped."""

    def __init__(self, stream, pattern: re.Pattern):
        self.stream, self.pattern = stream, pattern

    def write(self, text: str) -> int:
        return self.stream.write(escaped(text, self.pattern))

    def writelines(self, texts) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def protect_terminal() -> None:
    """Nothing that is printed from now on controls a terminal; files and pipes get it as it is."""
    for name, pattern in (("stdout", UNSEEN), ("stderr", BESIDE_BARS)):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Terminal) and stream.isatty():
            setattr(sys, name, Terminal(stream, pattern))


def one_line(message: str) -> str:
    """An error message for a terminal: escaped, on one line. For a file it stays as it is."""
    shown = sys.stderr is not None and sys.stderr.isatty()
    return escaped(message, IN_A_LINE) if shown else message
