"""The text of tokens that come one by one, and where a stop string ends it."""

from collections.abc import Sequence

from model.tokenizer import Tokenizer

AT_ONCE = 32  # tokens that are decoded again with each new one
CONTEXT = 16  # tokens before them, which the tokenizer may look at
HALF = "\ufffd"  # stands for the bytes of a character that is not whole yet


class TextStream:
    """Tokens in, pieces of text out; the pieces joined are the text of all tokens.

    What might be the beginning of a stop string is held back. `stopped`: one was found; the text
    ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()):
        self.tokenizer, self.stops, self.stopped = tokenizer, stops, False
        self.before, self.tokens = list(prompt[-CONTEXT:]), []
        self.shown = ""  # of the text of `tokens`
        self.held = ""

    def push(self, token: int) -> str:
        """The piece of text that is certain with this token."""
        self.tokens.append(token)
        text = self.text()
        if text.endswith(HALF) or not text.startswith(self.shown):
            return ""
        piece, self.shown = text[len(self.shown) :], text
        if len(self.tokens) >= AT_ONCE:
            self.before = [*self.before, *self.tokens][-CONTEXT:]
            self.tokens, self.shown = [], ""
        return self.release(piece)

    def finish(self) -> str:
        """What is left when there are no more tokens."""
        if self.stopped:
            return ""
        text = self.text()
        piece = text[len(self.shown) :] if text.startswith(self.shown) else ""
        piece = self.release(piece)
        return piece if self.stopped else piece + self.held

    def text(self) -> str:
        return self.tokenizer.decode(self.tokens, after=self.before) if self.tokens else ""

    def release(self, piece: str) -> str:
        """The beginning of all held text, with this piece, that is no part of a stop string."""
        text = self.held + piece
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        certain = len(text) - max((begun(text, stop) for stop in self.stops), default=0)
        self.held = text[certain:]
        return text[:certain]


def begun(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
