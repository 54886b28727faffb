"""The label that a text gives as its answer: one of a few words."""

import re
import unicodedata
from functools import lru_cache
from itertools import zip_longest

from eval.announced import own_text, statements, without_denials
from eval.letters import GOES_ON


def strict_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that `text` gives as its answer, in small letters, or None.

    What is announced last counts, else a label that begins a sentence and is set off from it
    ("Yes, there is no doubt."), else the last one.
    """
    labels = tuple(unicodedata.normalize("NFC", label) for label in labels)
    pattern = label_pattern(labels)
    text = own_text(text, lambda line: pattern.fullmatch(line.strip(" .!*")) is not None)
    if not any(re.search(r"\bnot\b|n['’]t\b", label.lower()) for label in labels):
        text = without_denials(text)
    announced = statements(text)
    for stated in announced:
        found = list(pattern.finditer(stated))
        if found:
            first = next((match for match in found if not is_determiner(stated, match)), found[0])
            return spelled(first[0], labels)
    if announced:
        return None
    found = list(pattern.finditer(text))
    found = [match for match in found if match.start() == 0 or not is_determiner(text, match)]
    found = [match for match in found if not is_set_aside(text, match)] or found
    found = [match for match in found if is_set_off(text, match)] or found
    return spelled(found[-1][0], labels) if found else None


@lru_cache
def label_pattern(labels: tuple[str, ...]) -> re.Pattern:
    """Of several labels the longest that is there: of flu and flu-b the latter. Blanks, hyphens and
    underscores stand for each other; a digit may be set off: option 2, ending #3."""
    forms = []
    for label in sorted(labels, key=len, reverse=True):
        parts = re.split(r"([ _-]+|(?<=[^\W\d_])(?=\d))", label)
        gaps = ["[ _-]+" if gap else "(?: ?#|[ _-])?" for gap in parts[1::2]]
        words = map(re.escape, parts[0::2])
        pairs = zip_longest(words, gaps, fillvalue="")
        forms.append("".join(f"{word}{gap}" for word, gap in pairs))
    number = r"|(?<=\d)(?:[.,:/]\d|%)"  # 1 of 1.5
    return re.compile(
        rf"(?<!\w)(?<!\w-)(?<!\d[.,:/])(?:{'|'.join(forms)})(?![\w{marks()}]|['’-]\w{number})",
        re.IGNORECASE,
    )


@lru_cache
def marks() -> str:
    """Ranges of the characters that go on with a word and that \\w lacks, such as the vowel signs
    of Hindi, for a character class."""
    is_mark = [unicodedata.category(chr(code))[0] == "M" for code in range(0x300, 0x2000)]
    text = "".join("M" if mark else " " for mark in is_mark)
    spans = ((0x300 + run.start(), 0x300 + run.end() - 1) for run in re.finditer("M+", text))
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in spans)


def is_determiner(text: str, match: re.Match) -> bool:
    """Whether a label is the "no" of "no doubt", the "a" of "a car" or the "I" of "I think"."""
    after = text[match.end() : match.end() + 12]
    known = match[0].casefold() in ("no", "a", "i")
    return known and bool(re.match(rf" (?!{GOES_ON})[a-z]", after))


def is_set_aside(text: str, match: re.Match) -> bool:
    """Whether a label is named as what is not so: "no contradiction", "rather than positive"."""
    before = text[max(0, match.start() - 14) : match.start()]
    words = r"(?i)\b(?:no|without|neither|nor|never|rather than|instead of) $"
    return bool(re.search(words, before))


def is_set_off(text: str, match: re.Match) -> bool:
    """Whether a label begins a sentence, maybe after "so", and a stop or the end follows."""
    start = match.start()
    before = ("\n" if start <= 24 else "") + text[max(0, start - 24) : start]
    begins = re.search(
        r"(?i)[.!?:\n]\s?(?:(?:and |so|thus|hence|therefore|i think|i believe),?:? )?\W?$", before
    )
    after = re.match(r"\W?\s?(?:[.,;:!\n–—]|$)", text[match.end() : match.end() + 3])
    return begins is not None and after is not None


def spelled(words: str, labels: tuple[str, ...]) -> str:
    """The label that words in any case and with other gaps are, in small letters."""

    def bare(text: str) -> str:
        return re.sub("[ _#-]", "", text).casefold()

    return next((label for label in labels if bare(label) == bare(words)), words).lower()
