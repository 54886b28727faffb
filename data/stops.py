"""Where an answer ends: the token ids after which a model has nothing more to say."""

from functools import lru_cache
from pathlib import Path

from data.chat_template import render_one
from files.errors import UserError
from files.reading import read_json, resolve_inside
from model.added_tokens import is_token_id
from model.tokenizer import Tokenizer

QUESTION, ANSWER = "What do you see?", "A red apple"


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end what the model of this tokenizer writes, in ascending order.

    They are eos_token_id of the folder's generation_config.json and config.json, the tokenizer's
    EOS, and the token that ends an assistant's turn in the chat template. Llama-3-Instruct names
    one of its two in the first only; Qwen's base models have their template's nowhere else.
    Raises UserError for an eos_token_id that is neither a number nor a list of them.
    """
    found = {*configured_stop_ids(tokenizer.folder), tokenizer.eos_id, turn_end(tokenizer)}
    return sorted(number for number in found - {None} if number < tokenizer.size)


def configured_stop_ids(folder: Path) -> list[int]:
    """eos_token_id of generation_config.json and config.json, a number or a list of them.

    Negative numbers are left out: old LLaMA files have -1 for "none". Raises UserError for others.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = resolve_inside(folder, name)
        value = read_json(path).get("eos_token_id") if path.is_file() else None
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int for number in numbers):
            raise UserError(
                f"{path}: eos_token_id should be the number of a token or a list of them, "
                f"not {value!r:.100}"
            )
        found |= set(filter(is_token_id, numbers))
    return sorted(found)


@lru_cache(maxsize=8)  # asked for every row of a data set
def turn_end(tokenizer: Tokenizer, template: str | None = None) -> int | None:
    """The id of the token that ends an assistant's turn in the chat template.

    template: the Jinja text, by default the tokenizer's own. None without a template, for one that
    cannot be rendered, and where the turn ends in plain text.
    """
    template = template or tokenizer.chat_template
    if not template:
        return None
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render_one(template, "plain", messages, False, tokenizer.special_tokens)
    except UserError:
        return None
    _, answer, after = text.rpartition(ANSWER)
    added = tokenizer.inner.added
    ends = [token for token in added if token and answer and after.lstrip().startswith(token)]
    return added[max(ends, key=len)] if ends else None
