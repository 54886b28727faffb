"""Prompts that a model has no positions for: named before anything is answered, counted as wrong.

OPT and GPT-J have a table of positions that ends; LLaMA's rotary angles and BLOOM's ALiBi go on.
"""

from adapters.rows import Rows, seated
from data.batches import encode_prompts
from data.prompts import Template
from eval.settings import Eval
from model.language import LanguageModel
from model.tokenizer import Tokenizer

NAMED = 3  # prompts that a line names


def positions_of(model: LanguageModel) -> int | None:
    """How many tokens of a text the model has positions for, with the adapters that are on.

    None: any number. Virtual tokens of prompts and prefixes take positions too.
    """
    if not model.shape.table:
        return None
    return model.shape.positions - model.prompt_length - model.prefix_length


class Fronts(dict):
    """Entry of Rows -> (virtual tokens, virtual keys of each layer) in front of its rows.

    Without Rows the only entry is None. `most`: columns of a slot (model/cache.py) in front of a
    row's tokens, the most of any entry; None without Rows.
    """

    def __init__(self, model: LanguageModel, mixtures: list[Rows]):
        super().__init__()
        for entry in range(len(mixtures[0].rows)) if mixtures else [None]:
            with seated(mixtures, [entry]):
                self[entry] = (model.prompt_length, *model.virtual_keys())
        self.most = max(map(self.columns, self)) if mixtures else None

    def columns(self, entry: int | None) -> int:
        """Columns in front of a row of this entry."""
        prompt, *keys = self[entry]
        return prompt + max(keys)


def room_for(positions: int | None, tokens: int, wanted: int) -> int:
    """How many of the `wanted` new tokens fit after a prompt of so many tokens; 0: not even the
    prompt does. The last new token is never read, so it takes no position."""
    if positions is None:
        return wanted
    return 0 if tokens > positions else min(wanted, positions - tokens + 1)


def too_long(model: LanguageModel) -> str:
    """What is wrong with a text that has more tokens than `positions_of`."""
    last = model.shape.positions - 1
    return f"position {last + 1} is past the model's last, {last}: the text is too long for it"


def room_lines(
    model: LanguageModel,
    tokenizer: Tokenizer,
    tests: dict[str, list[dict]],
    template: Template,
    decoding: Eval,
) -> list[str]:
    """Notes on test prompts that do not fit the model's positions, or leave less than
    eval.max_new_tokens for the answer."""
    positions = positions_of(model)
    if positions is None:
        return []
    wanted = 1 if decoding.scoring == "likelihood" else decoding.max_new_tokens
    none, short = [], []
    for name, rows in tests.items():
        for number, (_, ids) in enumerate(encode_prompts(tokenizer, rows, template), start=1):
            tokens = len(ids)
            room = room_for(positions, tokens, wanted)
            if room < wanted:
                (short if room else none).append(f"{name} row {number} ({tokens} tokens)")
    total = sum(map(len, tests.values()))
    reasons = {
        f"are longer than the model's {positions} positions and count as wrong": none,
        f"leave less than eval.max_new_tokens = {wanted} of the model's {positions} positions to "
        "the answer, which ends there": short,
    }
    return [
        f"{len(names)} of {total} test prompts {reason}: {first_of(names)}"
        for reason, names in reasons.items() if names
    ]  # fmt: skip


def first_of(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
