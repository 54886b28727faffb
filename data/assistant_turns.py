"""Which characters and tokens of a conversation the assistant says: these have the loss."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from data.chat_template import RefusedMessages

MARKER = "\U000f0000"  # a character without a meaning, in place of a response
TAGS = re.compile(r"(\s*[<\[]/?[^<>\[\]\s]{1,40}[>\]])+\s*")  # "<think>\n", "[THINK]"


@dataclass(frozen=True)
class Conversation:
    """A conversation as one text that ends with an assistant turn.

    spans: character ranges [start, end) that the assistant says, its end-of-turn token included.
    opens: what the prompt holds before the last response and the template leaves out of a
    rendered response, such as "<think>\\n"; "" for most templates. marked: the spans are those of
    the template's own {% generation %} blocks.
    """

    text: str
    spans: list[tuple[int, int]]
    opens: str = ""
    marked: bool = False


def conversation(
    render: Callable[[list[dict], bool], tuple[str, list[tuple[int, int]]]], messages: list[dict]
) -> Conversation:
    """The text of messages {role, content}, of which the last is the assistant's.

    render(messages, add_generation_prompt) -> (text, spans of generation blocks). A message with
    `weight` 0 has no span. With generation blocks, text and spans are those of transformers'
    `apply_chat_template(..., return_assistant_tokens_mask=True)`. Without them a turn begins where
    the prompt before it ends, and ends with what the template puts after a response.
    Raises RefusedMessages for a template that puts something else before a response than its
    prompt does.
    """
    plain = [{key: value for key, value in one.items() if key != "weight"} for one in messages]
    text, marked = render(plain, False)
    turns = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    learned = [number for number in turns if "weight" not in messages[number]]
    if marked:
        if len(learned) < len(turns):
            if len(marked) != len(turns):
                raise RefusedMessages(
                    "the chat template's {% generation %} blocks are not one for each assistant "
                    "turn, so that turns of weight 0 cannot be found: use another --template"
                )
            marked = [marked[turns.index(number)] for number in learned]
        last = max(end for _, end in marked)
        return Conversation(text[: max(last, len(text.rstrip()))], marked, marked=True)
    prompt, _ = render(plain[:-1], True)
    opens = ""
    if not text.startswith(prompt):
        text, opens = with_opening(render, plain, text, prompt)
    text = text.rstrip()
    content = plain[-1]["content"]
    at = find_content(text, content, len(prompt))
    closing = "" if at is None else text[at[1] :]
    spans, end = [], 0
    for number in turns[:-1]:
        before, _ = render(plain[:number], True)
        begin = len(before)
        if not text.startswith(before):  # the prompt of this turn is not in the whole text
            begin = place_of(render, plain, number, text)
        here = find_content(text, plain[number]["content"], max(end, begin))
        if begin < 0 or here is None or here[1] > len(prompt):
            raise RefusedMessages(
                "an earlier assistant turn is not in what the chat template makes of the "
                "conversation: use another --template"
            )
        start = len(before) if text.startswith(before) else here[0]
        end = here[1] + len(closing) * text.startswith(closing, here[1])
        if number in learned:
            spans.append((start, end))
    return Conversation(text, [*spans, (len(prompt), len(text))], opens)


def place_of(render, messages: list[dict], number: int, text: str) -> int:
    """Where the content of message `number` begins in the text of all messages: where the text
    with another content there leaves it. -1 where that cannot be told."""
    other = messages[number] | {"content": MARKER}
    probe, _ = render([*messages[:number], other, *messages[number + 1 :]], False)
    at = probe.find(MARKER)
    return at if text.startswith(probe[: max(at, 0)]) else -1


def with_opening(render, messages: list[dict], text: str, prompt: str) -> tuple[str, str]:
    """(the text with the response after all of the prompt, what the prompt opens).

    For templates such as DeepSeek-R1's, whose prompt ends with "<think>\\n" and which drop that,
    and what was thought, from a rendered response. Raises RefusedMessages for others.
    """
    output = messages[-1]["content"].strip()
    before, _ = render(messages[:-1], False)
    probe, _ = render([*messages[:-1], messages[-1] | {"content": MARKER}], False)
    at = probe.find(MARKER, len(before))
    opens = prompt[at:]
    if at < 0 or not prompt.startswith(probe[:at]) or not TAGS.fullmatch(opens):
        raise RefusedMessages(
            "the chat template puts something else before a response than in its prompt: "
            "use another --template"
        )
    if output.startswith(opens.strip()):  # the data has the tag as well
        output = output.removeprefix(opens.strip()).lstrip()
    return prompt + output + probe[at + len(MARKER) :], opens


def find_content(text: str, content: str, start: int) -> tuple[int, int] | None:
    """Where a message stands in a text from `start` on: as it is, stripped, or without what was
    thought, which templates drop from earlier turns. None where it does not."""
    for form in (content, content.strip(), content.rpartition("</think>")[2].strip()):
        at = text.find(form, start)
        if at >= 0:
            return at, at + len(form)
    return None


def encode_chat(
    tokenizer, chat: Conversation, turn_end: int | None = None
) -> tuple[list[int], list[float]]:
    """A conversation -> (ids, weight 1 on every token that a span touches, else 0).

    The token `turn_end` directly after a span has the loss too; what follows the last one is cut.
    An EOS follows where the text ends without a special token, so that there is an end to learn.
    """
    ids, places = tokenizer.encode_with_offsets(chat.text)
    weights = [0.0] * len(ids)
    number = 0
    for start, end in chat.spans:
        while number < len(ids) and places[number][1] <= start:
            number += 1
        while number < len(ids) and places[number][0] < end:
            weights[number] = 1.0
            number += 1
        if turn_end is not None and ids[number : number + 1] == [turn_end]:
            weights[number] = 1.0
            number += 1
    if turn_end in ids:
        last = len(ids) - ids[::-1].index(turn_end)
        ids, weights = ids[:last], weights[:last]
    if tokenizer.eos_id is not None and not (ids and tokenizer.is_special(ids[-1])):
        ids, weights = [*ids, tokenizer.eos_id], [*weights, 1.0]
    return ids, weights
