"""What kind of answers a column of labels holds, and which labels are of another kind.

A kind is a text that eval/answers.py `read_answer` takes and files keep:

    number              numbers in any form of data/numerals.py, with a decimal point
    number:comma        the same with a decimal comma: 1.234,5
    letter              option letters A to E
    letters:A|B|C|D     these option letters or digits
    labels:no|yes       one of a few words
    text                anything else
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from data.numerals import label_number, writes_comma

MOST_LABELS = 20  # different words of a column that is read as words
MOST_MISFITS = 0.1  # of the labels may be of another kind
LETTERS_SEEN = 5  # labels an option; with fewer, some options may not have been seen
LAST_FILLED = "J"


def kind_of_answers(answers: Iterable[str]) -> str:
    """How answers like these are read. A tenth of them may be of another kind."""
    counts = Counter(answer.strip() for answer in answers)
    total = counts.total()
    letters = {label: core for label in counts if (core := letter_of(label))}
    digits = {label for label, core in letters.items() if core.isdecimal()}
    mixed = len(letters) == len(counts) and not few_misfits(counts, digits)
    if not mixed and are_numbers(counts):
        return "number:comma" if writes_comma(list(counts)) else "number"
    if mixed or (few_misfits(counts, letters) and len(digits) < len(letters)):
        return kind_of_letters(letters, total)
    words = {label for label in counts if is_word(label)}
    repeated = len(words) == len(counts) or total >= 2 * len(counts)
    if len(words) <= MOST_LABELS and few_misfits(counts, words) and repeated:
        composed = (unicodedata.normalize("NFC", word).lower() for word in words)
        return "labels:" + "|".join(sorted(set(composed)))
    return "text"


def total_of(counts: Counter, labels: Iterable[str]) -> int:
    return sum(counts[label] for label in labels)


def few_misfits(counts: Counter, fitting: Iterable[str]) -> bool:
    """Whether all but a tenth of the labels fit."""
    total = counts.total()
    return total - total_of(counts, fitting) <= MOST_MISFITS * total


def are_numbers(counts: Counter) -> bool:
    """Whether the labels are numbers, with units after at most half of them or one for all."""
    found = {label: number for label in counts if (number := label_number(label))}
    if not few_misfits(counts, found):
        return False
    units = {unit.lower().rstrip("s") for _, unit in found.values()}
    bare = [label for label, (_, unit) in found.items() if not unit]
    return len(units) <= 1 or 2 * total_of(counts, bare) >= counts.total()


def letter_of(label: str) -> str:
    """The letter or digit 1 to 9 that a label is, perhaps in brackets or with a stop; "" for none.

    A letter is one of a script with capitals."""
    match = re.fullmatch(r"[(\[]?([^\W_])[)\].:]{0,2}", label)
    core = match[1] if match else ""
    return core if core in "123456789" or core.lower() != core.upper() else ""


def is_word(label: str) -> bool:
    """Whether a label is letters, digits, hyphens and underscores of any script."""
    label = unicodedata.normalize("NFC", label)
    return bool(label) and all(
        char.isalnum() or char in "-_" or unicodedata.category(char)[0] == "M" for char in label
    )


def kind_of_letters(labels: dict[str, str], total: int) -> str:
    """The kind of these option letters (label -> letter), of `total` labels.

    Where few labels are there, letters that none of them has are put in: A, C, E are of A to E.
    """
    large = any(core.isupper() for core in labels.values())
    form = "{}"
    if len(forms := {label.replace(core, "{}", 1) for label, core in labels.items()}) == 1:
        form = forms.pop()
    cores = {core.upper() if large else core for core in labels.values()}
    options = []
    for first, sort in ("A" if large else "a", str.isalpha), ("1", str.isdecimal):
        some = sorted(filter(sort, cores))
        last = some[-1] if some else ""
        span = ord(last) - ord(first) + 1 if some and last.isascii() else 0
        if span > len(some) and last.upper() <= LAST_FILLED and total < LETTERS_SEEN * span:
            some = [chr(ord(first) + i) for i in range(span)]
        options += some
    if form == "{}" and ("".join(options) == "ABCDE" or options == ["A"]):
        return "letter"
    return "letters:" + "|".join(map(form.format, options))


def kind_in_words(kind: str) -> str:
    """A kind as a line to a user says it."""
    name, _, given = kind.partition(":")
    if name == "number":
        return "numbers" + (" with a decimal comma (1.234,5)" if given else "")
    if name == "letter":
        return "option letters A to E"
    if name == "letters":
        return f"option letters {', '.join(given.split('|'))}"
    return f"one of the words {', '.join(given.split('|'))}" if name == "labels" else "texts"
