"""What a tokenizer.json may ask for: the library loads and runs whatever stands in it.

Sizes that no published file has are refused before the library reads the file. What a text becomes
is multiplied by normalizers, and patterns may backtrack for ever: a file with other parts than
`is_bounded` knows is run in the child process (files/bounded.py).
"""

from dataclasses import dataclass
from pathlib import Path

from files.errors import UserError
from files.tokenizing import ask

ENTRIES = 600_000  # of a vocabulary, or merges; published ones have 262,000
LONGEST_TOKEN = 1000  # characters
ADDED = 500_000  # characters of all added tokens together
UNIGRAM = 4_000_000  # characters of a Unigram's vocabulary, whose tree takes 300 bytes for each
GROWTH = 32  # characters that one character of a text may become
PREFIX = 64  # tokens that a template puts in front of a text
TEMPLATE = 1000  # entries of all lists of the templates together
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")  # contractions, words, digits, signs, white space
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
PATTERNS = {LLAMA3, QWEN2, BLOOM}
PLAIN = {  # parts -> characters that they make of one at most
    **dict.fromkeys(("Strip", "StripAccents", "Fuse", "ByteFallback", "Digits", "Punctuation"), 1),
    **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace"), 1),
    **dict.fromkeys(("ByteLevel", "Lowercase", "Nmt", "UnicodeScripts"), 3),
    **dict.fromkeys(("BertNormalizer", "NFC", "NFD"), 4), "NFKC": 18, "NFKD": 18,
}  # fmt: skip


def check_sizes(raw: dict, path: Path) -> None:
    """Raise UserError for a tokenizer.json that the library would load for minutes."""
    added = raw.get("added_tokens") or []
    contents = [token.get("content") for token in added if isinstance(token, dict)]
    model = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    pieces = model.get("vocab") if isinstance(model.get("vocab"), list) else []
    texts = [piece[0] for piece in pieces if isinstance(piece, list) and piece]
    for what, names, most in (("added tokens", contents, ADDED), ("vocabulary", texts, UNIGRAM)):
        lengths = [len(name) for name in names if isinstance(name, str)]
        if sum(lengths) > most or max(lengths, default=0) > LONGEST_TOKEN:
            raise UserError(
                f"{path}: its {what} has {sum(lengths):,} characters, in one token up to "
                f"{max(lengths):,}: too many for a tokenizer"
            )
    for what in ("vocab", "merges"):
        count = len(model[what]) if isinstance(model.get(what), dict | list) else 0
        if count > ENTRIES:
            raise UserError(f"{path}: its {what} has {count:,} entries: too many for a tokenizer")
    if (count := entries(raw.get("post_processor"))) > TEMPLATE:
        raise UserError(
            f"{path}: its post_processor has {count:,} entries: too many for a template"
        )
    if model.get("dropout"):
        raise UserError(
            f"{path} has model.dropout = {model['dropout']!r:.50}: it would cut the same text into "
            "other tokens each time; set it to null"
        )


def entries(part) -> int:
    """How many entries all lists in a part of the file have."""
    if not isinstance(part, dict | list):
        return 0
    inner = part.values() if isinstance(part, dict) else part
    return len(part) * isinstance(part, list) + sum(map(entries, inner))


def is_bounded(raw: dict) -> bool:
    """Whether a tokenizer.json makes at most GROWTH characters of one, without a pattern that could
    backtrack: of parts that are known, in linear time."""
    texts = growth(raw.get("normalizer")) * growth(raw.get("pre_tokenizer"))
    model = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    affixes = [model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    words = model.get("max_input_chars_per_word", 0)
    return (
        texts <= GROWTH
        and growth(raw.get("decoder")) <= GROWTH
        and all(isinstance(affix, str) and len(affix) <= 16 for affix in affixes)
        and isinstance(words, int)
        and words <= 1000
    )


def growth(part) -> float:
    """How many characters one character becomes in this part of a tokenizer at most."""
    if part is None:
        return 1
    inner = [value for value in part.values() if isinstance(value, list)]
    kind = part.get("type")
    if kind == "Sequence" and len(inner) == 1:
        total = 1.0
        for step in inner[0]:
            total *= growth(step)
        return total
    if kind in PLAIN:
        return PLAIN[kind]
    if kind == "Prepend":
        return 1 if len(part.get("prepend", "")) <= 16 else float("inf")
    pattern = part.get("pattern") if isinstance(part.get("pattern"), dict) else {}
    if kind == "Replace" and isinstance(text := pattern.get("String"), str) and text:
        return max(1.0, len(part.get("content", "")) / len(text))
    known = "String" in pattern or pattern.get("Regex") in PATTERNS
    return 1 if kind == "Split" and known else float("inf")


@dataclass(frozen=True)
class Encoded:
    """What the library's Encoding has, as far as it is used."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


class InChild:
    """A tokenizer of the `tokenizers` library that encodes and decodes in the child process."""

    def __init__(self, inner, path: Path):
        self.inner, self.state, self.what = inner, inner.to_str(), f"the tokenizer {path}"

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        ids, offsets, mask = ask(
            "Json", self.state, ["encode", text, add_special_tokens], self.what
        )
        return Encoded(ids, [tuple(place) for place in offsets], mask)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return ask("Json", self.state, ["decode", ids, skip_special_tokens], self.what)[0]
