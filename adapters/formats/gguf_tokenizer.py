"""A tokenizer as llama.cpp has it: the fields tokenizer.ggml.* of a GGUF file.

llama.cpp runs two of the kinds that we read: byte-level BPE ("gpt2", with its merges, and a name
for how a text is cut before them) and sentencepiece's BPE ("llama", with a score for each piece).
Whatever it would cut into other tokens is refused.
"""

import json
import warnings
from dataclasses import dataclass

from files.errors import UserError
from model.tokenizer import Tokenizer
from model.tokenizer_bounds import BLOOM, LLAMA3, QWEN2
from model.tokenizer_json import PREPEND, REPLACE, SPACE, FileTokenizer
from model.tokenizer_sentencepiece import SentencePieceTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types
REGEX, NO_REGEX = ("ByteLevel", True), ("ByteLevel", False)
CUTS = {  # (normalizers, pre-tokenizers, ignore_merges) -> tokenizer.ggml.pre
    ((), (REGEX,), False): "gpt-2",
    ((), (("Digits", True), REGEX), False): "smollm",
    ((), (("Split", LLAMA3), NO_REGEX), True): "llama-bpe",
    (("NFC",), (("Split", QWEN2), NO_REGEX), False): "qwen2",
    ((), (("Split", BLOOM), NO_REGEX), False): "bloom",
}
PROBE = "ﬁne  x²"  # sentencepiece's own normalizations would change it
LAST = -1e6  # the score of a piece that no merge makes


@dataclass(frozen=True)
class Piece:
    """A token: its text in the vocabulary, its type, and its score (of sentencepiece)."""

    text: str
    type: int = NORMAL
    score: float = 0.0


def tokenizer_fields(tokenizer: Tokenizer, rows: int, template: str | None) -> dict:
    """The fields of a model whose embedding has so many rows; template: the Jinja chat template.

    Raises UserError for a tokenizer that llama.cpp has no form for.
    """
    tokenizer.fit(rows)
    inner, where = tokenizer.inner, tokenizer.folder
    read = read_sentencepiece if isinstance(inner, SentencePieceTokenizer) else read_file
    fields, pieces = read(inner, where)
    for text, number in inner.added.items():
        if number not in pieces or pieces[number].type == NORMAL:
            special = CONTROL if number in inner.special else USER_DEFINED
            pieces[number] = Piece(text, special, LAST)
    table = [pieces.get(number) or Piece(f"[PAD{number}]", UNUSED) for number in range(rows)]
    fields["tokens"] = [piece.text for piece in table]
    fields["token_type"] = [piece.type for piece in table]
    if fields["model"] == "llama":
        fields["scores"] = [piece.score for piece in table]
    if tokenizer.eos_id is None:
        raise UserError(f"{where}: the tokenizer has no EOS, and llama.cpp would take token 11")
    start = tokenizer.encode("")
    if len(start) > 1:
        raise UserError(f"{where}: texts begin with the tokens {start}; llama.cpp puts one there")
    unknown = tokenizer.special_tokens.get("unk_token")
    ids = {
        "bos": start[0] if start else tokenizer.bos_id, "eos": tokenizer.eos_id,
        "padding": tokenizer.pad_id, "unknown": inner.token_id(unknown) if unknown else None,
    }  # fmt: skip
    fields |= {f"{kind}_token_id": number for kind, number in ids.items() if number is not None}
    fields |= {"add_bos_token": bool(start), "add_eos_token": False}
    named = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return named | ({"tokenizer.chat_template": template} if template else {})


def read_file(inner: FileTokenizer, where) -> tuple[dict, dict[int, Piece]]:
    """(fields, pieces by id) of a tokenizer.json, or of vocab.json with merges.txt."""
    raw = json.loads(inner.inner.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise no_form(where, f"{model['type']} instead of BPE")
    strips = ("lstrip", "rstrip", "single_word")
    for token in raw["added_tokens"]:
        if wrong := next((flag for flag in strips if token[flag]), None):
            raise no_form(where, f"{token['content']!r} with {wrong}")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    before, cuts = steps(raw["normalizer"]), steps(raw["pre_tokenizer"])
    prefix = first_space(before, cuts)
    if prefix is not None:
        if not model["byte_fallback"]:
            raise no_form(where, "no byte_fallback")
        if cuts and cuts[0]["prepend_scheme"] == "first":
            warnings.warn(
                "llama.cpp puts a space after special tokens inside a text, where this tokenizer "
                "has none: it reads later turns of a chat as other tokens",
                stacklevel=4,
            )
        scores: dict[str, float] = {}
        for rank, (one, other) in enumerate(merges):
            scores.setdefault(one + other, -float(rank))
        pieces = {
            number: Piece(text, BYTE if is_byte(text) else NORMAL, scores.get(text, LAST))
            for text, number in model["vocab"].items()
        }
        return {"model": "llama", "pre": "default", "add_space_prefix": prefix}, pieces
    parts = tuple(step["type"] for step in before), tuple(map(cut, cuts))
    name = CUTS.get((*parts, bool(model["ignore_merges"])))
    if name is None:
        raise no_form(where, f"the normalizer {before} with the pre-tokenizer {cuts}")
    pieces = {number: Piece(text) for text, number in model["vocab"].items()}
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges]}, pieces


def read_sentencepiece(inner: SentencePieceTokenizer, where) -> tuple[dict, dict[int, Piece]]:
    """(fields, pieces by id) of a tokenizer.model."""
    texts, _, control, unknown, in_bytes = inner.ask("table", None)
    scores, unused = inner.ask("scores", None)
    types = dict.fromkeys(in_bytes, BYTE) | dict.fromkeys(unused, UNUSED)
    types |= dict.fromkeys(control, CONTROL) | dict.fromkeys(unknown, UNKNOWN)
    pieces = {
        number: Piece(text, types.get(number, NORMAL), score)
        for number, (text, score) in enumerate(zip(texts, scores, strict=True))
    }
    if not all(score.is_integer() for score in scores):
        raise no_form(where, "unigram scores instead of BPE's")
    if inner.decode(inner.encode(PROBE, bos=False)) != PROBE:
        raise no_form(where, "a normalization of the text, or no byte pieces")
    if r"\s*" in inner.pattern.pattern:
        raise no_form(where, "a token with lstrip or rstrip")
    prefix = texts[inner.encode("a", bos=False)[0]].startswith(SPACE)
    return {"model": "llama", "pre": "default", "add_space_prefix": prefix}, pieces


def steps(part: dict | None) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    return next((value for value in part.values() if isinstance(value, list)), [part])


def cut(step: dict) -> tuple:
    """A step of a pre-tokenizer by what tells it apart, as `CUTS` has it."""
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return "Split", step["pattern"].get("Regex")
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "ByteLevel", step["use_regex"]
    return step["type"], step.get("individual_digits")


def first_space(before: list[dict], cuts: list[dict]) -> bool | None:
    """Whether a space is put in front of a text, for sentencepiece's BPE; None for another."""
    if before in ([PREPEND, REPLACE], [REPLACE]) and not cuts:
        return PREPEND in before
    if before or len(cuts) != 1 or cuts[0]["type"] != "Metaspace" or cuts[0]["split"]:
        return None
    return cuts[0]["prepend_scheme"] != "never" if cuts[0]["replacement"] == SPACE else None


def is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def no_form(where, what: str) -> UserError:
    return UserError(f"llama.cpp has no form for the tokenizer in {where}: it has {what}")
