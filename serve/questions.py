"""What the loop is asked, and what comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.requests import Event
from eval.sampling import Sampling
from eval.text import TextStream

if TYPE_CHECKING:
    from serve.adapters import Served

Scored = tuple[int, float, list[tuple[int, float]]]  # a token, its log-probability, the likeliest


class Refused(Exception):
    """A question that is not answered now: no such model, too many waiting, stopping.

    `code` is the protocol's word for it.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Question:
    """Token ids to continue, by the base ("") or an adapter."""

    ids: list[int]
    max_new_tokens: int
    adapter: str = ""
    sampling: Sampling | None = None  # None: greedy
    seed: int = 0  # of drawn tokens
    stops: tuple[str, ...] = ()  # texts that end the answer and are no part of it
    logprobs: int | None = None  # how many likely tokens to give beside each; None: no figures


@dataclass(frozen=True)
class Piece:
    """New text of an answer. The last one has `ended`, or `error`."""

    text: str = ""
    tokens: int = 0
    scored: Sequence[Scored] = ()
    ended: str = ""  # why: "stop" or "length"
    error: str = ""


@dataclass(eq=False)
class Answer:
    """A question on its way; `deliver` gets its pieces, in the loop's thread."""

    question: Question
    deliver: Callable[[Piece], None]
    stream: TextStream
    last: float  # when its last token came, or it was asked
    tokens: int = 0  # so far
    number: int | None = None  # the engine's; None: not submitted yet
    served: "Served | None" = None  # the base or adapter that answers
    is_over: bool = False

    def piece(self, event: Event) -> Piece:
        """The text of new tokens; a stop string may end it."""
        stream, text = self.stream, ""
        for token in event.tokens:
            text += stream.push(token)
        ended = "length" if event.ended == "positions" else event.ended
        if ended:
            text += stream.finish()
        self.tokens += len(event.tokens)
        pairs = zip(event.tokens, event.scores, strict=False)
        scored = [(token, *scores) for token, scores in pairs]
        return Piece(text, len(event.tokens), scored, "stop" if stream.stopped else ended)
