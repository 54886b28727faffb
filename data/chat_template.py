"""Chat templates: the Jinja text of a checkpoint, rendered in a child process with limits.

A template comes from a checkpoint that nobody has checked. data/rendering.py renders it in Jinja's
sandbox; files/bounded.py limits the time and the memory that this takes.
"""

from collections.abc import Iterator, Sequence

from files.bounded import call
from files.errors import UserError

WORK = "data.rendering:render_all"
PATIENCE = 2.0  # seconds of computing for one text; published templates take milliseconds
AT_ONCE = 500  # texts in one request to the child process
Messages = list[dict]


class RefusedMessages(UserError):
    """A template has no form for these messages; it may have one for others."""


def render_all(
    text: str, kind: str, chats: Sequence[tuple[Messages, bool]], special: dict[str, str]
) -> Iterator:
    """What the chat template `text` makes of each chat (messages, add_generation_prompt).

    kind, a function of data/rendering.py: "plain" yields texts, "with_spans" (text, spans), and
    "as_conversation" the fields of a Conversation. A RefusedMessages stands for messages that the
    template refuses. special: the variables bos_token, eos_token ... of the template. Raises
    UserError for a template that takes too long, too much memory, or writes too much.
    """
    for start in range(0, len(chats), AT_ONCE):
        request = {
            "text": text, "kind": kind, "special": dict(special), "patience": PATIENCE,
            "chats": chats[start : start + AT_ONCE],
        }  # fmt: skip
        for result, refused in call(WORK, request, "the chat template", PATIENCE):
            yield RefusedMessages(refused) if refused else result


def render_one(text: str, kind: str, messages: Messages, ask: bool, special: dict[str, str]):
    """`render_all` of one chat. Raises UserError."""
    (result,) = render_all(text, kind, [(messages, ask)], special)
    if isinstance(result, RefusedMessages):
        raise result
    return result
