"""Plain texts as rows of equal length."""

from collections.abc import Sequence

from data.batches import Example


def pack_text(tokenizer, texts: Sequence[str], cutoff: int) -> tuple[list[Example], int]:
    """Plain texts -> (rows of `cutoff` tokens with loss on all of them, the tokens in all).

    The texts follow each other with an EOS after each; the last row may be shorter.
    """
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text)
        if tokenizer.eos_id is not None:
            ids.append(tokenizer.eos_id)
    rows = [ids[start : start + cutoff] for start in range(0, len(ids), cutoff)]
    return [Example(row, [1.0] * len(row)) for row in rows if len(row) > 1], len(ids)
