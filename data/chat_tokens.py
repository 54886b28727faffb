"""A conversation as token ids, and which of them have the loss."""

from data.assistant_turns import Conversation


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
