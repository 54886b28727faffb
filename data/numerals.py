"""Numbers as people write them. Texts are plain ones (data/markup.py).

    1,234.5   1 234.5   1'234.5   1_234   12,34,567      separators of thousands
    1.234,5   1.234.567   1,5   0,125                    with a decimal comma
    1/2   1 1/2   2^3   1e5   1.5 x 10^6                 fractions and powers
    $2.5M   5k   3 million   2 lakh   $4 bn              magnitudes
    15%   $5   5 €   Rs. 500                             signs beside a number are dropped

"1.234" and "1,234" alone are ambiguous: 1.234 and 1234, or the other way round with comma=True.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache

from data.markup import FINAL, plain

LARGEST = 1e100  # a runaway string of digits is no number
MOST_DIGITS = 400  # of a power that is computed exactly
MINUS = "-\u2212\u2013"  # first in a character class, where it begins with a hyphen
POWERS_OF_TEN = {
    "hundred": 2, "thousand": 3, "k": 3, "lakh": 5, "million": 6, "mln": 6, "mio": 6, "mn": 6,
    "m": 6,
    "crore": 7, "billion": 9, "mrd": 9, "bn": 9, "b": 9, "trillion": 12, "tn": 12, "t": 12,
    "quadrillion": 15, "quintillion": 18,
}  # fmt: skip
WITH_COMMA = str.maketrans(",", ".", ". '’")  # what float() takes
WITH_POINT = str.maketrans("", "", ", '’_")
CURRENCY = r"(?:[$€£¥₹₽₩]|(?:\b(?:Rs\.?|USD|EUR|GBP|INR|CHF)(?![A-Za-z])))"

COMMA = r"\d{1,3}(?:[. '’]\d{3})+,\d++(?!,\d)|\d{1,3}(?:\.\d{3}){2,}(?!\d|\.\d)"
IN_BRACKETS = r"(?!(?<=[(\[{])\d+,\d+[)\]}])"  # (3,4) is a pair
ONE_COMMA = r"(?:0|\d{4,}),\d++(?![,.]\d)|\d{1,3},(?:\d{1,2}|\d{4,})(?!\d|[,.]\d)"
POINT = (
    r"\d{1,2}(?:,\d{2})+,\d{3}(?!\d|,\d)(?:\.\d+)?"  # 12,34,567 (Indian)
    r"|\d{1,3}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?"
    r"|\d{1,3}(?:['’]\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:_\d{3})+(?!\w)(?:\.\d+)?"
)
PLAIN = r"\d+(?:\.\d+)?|\.\d+"
NOTATIONS = {  # comma -> (written with a decimal comma, with a decimal point)
    False: (f"{COMMA}|{IN_BRACKETS}(?:{ONE_COMMA})", f"{POINT}|{PLAIN}"),
    True: (
        rf"{COMMA}|\d{{1,3}}(?:\.\d{{3}})+(?!\d|\.\d)|{IN_BRACKETS}\d+,\d++(?![,.]\d)",
        f"{POINT}|{PLAIN}",
    ),
}


@lru_cache
def pattern(comma: bool) -> re.Pattern:
    """The pattern of a number. It never fails after a long run of digits, which keeps it linear:
    what turns out to be a time of day or an unfinished power is matched and marked `bad`."""
    with_comma, with_point = NOTATIONS[comma]
    scales = "hundreds?|thousands?|lakhs?|crores?|(?:m|b|tr|quadr|quint)illions?"
    scales += "|mln|mio|mn|mrd|bn|tn"
    return re.compile(
        r"(?<![\w.,/^])(?<!\d[:'’])"  # not the tail of a word, a number, a time of day or a power
        rf"(?P<minus>(?<![\w)%])(?:(?<![\d)%]\s)[{MINUS}](?=\S)"  # not that of a difference,
        rf"|(?<!\n)(?<![\w)%]\s)[{MINUS}]\s))?"  # nor a bullet
        rf"(?P<currency>{CURRENCY}\s?(?P<inner>[{MINUS}])?)?"
        rf"(?P<digits>(?>(?P<comma>{with_comma})|{with_point}))"
        r"(?:\s?/\s?(?P<below>\d{1,9})(?![\d/])"  # 29/3
        r"|\s(?:and\s)?(?P<top>\d{1,3})/(?P<bottom>\d{1,3})(?![\d/])"  # 1 1/2
        rf"|(?:[eE]|\s?[x×*·]\s?10\^)(?P<ten>[{MINUS}+]?\d{{1,3}})(?!\w)"  # 1e5, 1.5 x 10^6
        rf"|\^(?P<power>[{MINUS}+]?\d{{1,3}})(?!\d))?"  # 2^3
        r"(?:(?P<bad>:\d[\d:]*|\^)"
        rf"|[\s-]?(?P<scale>(?i:{scales})\b)"
        r"|(?P<letter>(?(currency)\s?[kKmMbBtT]|[kKMB]))(?!\w))?"  # 5k, 5M; with a currency $5 m
    )


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
VALUES = {word: i for i, word in enumerate(ONES)}
VALUES |= {word: 20 + 10 * i for i, word in enumerate(TENS)} | {"a": 1}
PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "fourth": 4, "fourths": 4}
PARTS |= {"quarter": 4, "quarters": 4, "fifth": 5, "fifths": 5}
SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(ONES[1:10])})\b)?|(?:{'|'.join(ONES[::-1])}))"
GROUP = rf"(?:a hundred|{SMALL}(?: hundred)?)(?:(?<=hundred)(?: and)? {SMALL})?"
LARGE = r" (?:thousand|million|billion|trillion|quadrillion|quintillion)\b"
WORDS = re.compile(
    rf"\b({GROUP}(?:{LARGE}(?:,? (?:and )?{GROUP})?){{0,4}})\b(?:[ -]({'|'.join(PARTS)})\b)?",
    re.IGNORECASE,
)
NEGATIVE = re.compile(r"(?i)\bnegative (?=[$€£]?\d)|(?<=\bis )minus (?=[$€£]?\d)")


def numbers(text: str, comma: bool = False) -> list[float]:
    """Every number of a text, in order. comma: whether "1.234" and "1,234" are 1234 and 1.234."""
    return [number for match in pattern(comma).finditer(text) for number in values(match)]


def found_numbers(text: str, comma: bool = False) -> Iterator[tuple[re.Match, float]]:
    """(match, number) for every number of a text, in order."""
    for match in pattern(comma).finditer(text):
        yield from ((match, number) for number in values(match)[:1])


def values(match: re.Match) -> list[float]:
    """The number of a match: two for what only looks like a mixed one (5 3/2); none for a time of
    day, a division by zero, or what is too large to be meant."""
    if match["bad"]:
        return []
    sign = -1.0 if match["minus"] or match["inner"] else 1.0
    try:
        found = magnitudes(match)
    except (OverflowError, ZeroDivisionError):
        return []
    return [sign * number for number in found if number <= LARGEST]


def magnitudes(match: re.Match) -> list[float]:
    """The number of a match without its sign. Raises OverflowError and ZeroDivisionError."""
    digits = match["digits"].translate(WITH_COMMA if match["comma"] else WITH_POINT)
    scale = (match["scale"] or match["letter"] or "").strip().lower().removesuffix("s")
    ten = POWERS_OF_TEN[scale] if scale else 0
    if match["below"]:
        whole = "." not in digits and float(digits) <= LARGEST
        return [float(digits) / int(match["below"]) * 10**ten] if whole else []
    if match["top"]:
        first, part = float(digits), int(match["top"]) / int(match["bottom"])
        mixed = part < 1 and first.is_integer()
        return [(first + part) * 10**ten] if mixed else [first, part]
    if match["power"]:
        return [power_of(digits, signed(match["power"])) * 10**ten]
    if match["ten"]:
        ten += signed(match["ten"])
    return [float(f"{digits}e{ten}")]  # rounded once


def power_of(digits: str, power: int) -> float:
    """A power, exact where it is a whole number. Raises OverflowError and ZeroDivisionError."""
    if digits.isdecimal() and power >= 0 and len(digits) * power <= MOST_DIGITS:
        return float(int(digits) ** power)
    return float(digits) ** power


def signed(digits: str) -> int:
    return int(re.sub(f"[{MINUS}]", "-", digits))


def in_digits(text: str) -> str:
    """A text with its number words as digits: twenty-five 25, two and a half 2 1/2, one half 1/2,
    negative five -5."""
    text = re.sub(r"(?i) and (?:a|one)[ -]half\b", " 1/2", text)
    return NEGATIVE.sub("-", WORDS.sub(digits_of, text))


def digits_of(match: re.Match) -> str:
    whole = value_of(match[1])
    return f"{whole}/{PARTS[match[2].lower()]}" if match[2] else str(whole)


def value_of(words: str) -> int:
    """The value of number words: "two thousand and five" is 2005."""
    total = group = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "hundred":
            group *= 100
        elif word in POWERS_OF_TEN:
            total, group = total + group * 10 ** POWERS_OF_TEN[word], 0
        else:
            group += VALUES.get(word, 0)  # "and" adds nothing
    return total + group


UNIT = r"(?P<unit>[^\W\d_]{1,20}\.?(?: [^\W\d_]{1,20})?(?:\^[23])?)"
AFTER = re.compile(rf"\s?(?:%|°|percent\b|{CURRENCY}|dollars?\b|euros?\b|cents?\b)?(?: ?{UNIT})?")


def label_number(label: str, comma: bool = False) -> tuple[float, str] | None:
    """(the number that a label is, its unit or ""); None for a label that is no number.

    label: a number in any form of this module or in words; currency and percent are dropped. A
    unit is at most two words after the number: "5 km", "10 cm^2".
    """
    text = re.sub(r"^[+~≈] ?", "", plain(label).replace(FINAL, "").strip().rstrip("."))
    for form in (text, in_digits(text)):
        match = pattern(comma).match(form)
        after = match and AFTER.fullmatch(form, match.end())
        found = values(match) if after else []
        if len(found) == 1 and math.isfinite(found[0]):
            return found[0], after["unit"] or ""
    return None


def writes_comma(labels: list[str]) -> bool:
    """Whether a column of numbers has a decimal comma: more of its labels can only be read so
    (1.234,5; 1,5) than can only be read with a decimal point (1,234.5; 1.5)."""
    only_comma = re.compile(f"(?:{COMMA}|{ONE_COMMA})")
    only_point = re.compile(
        r"\d{1,3}(?:[, '’]\d{3})+\.\d+|\d{1,3}(?:,\d{3}){2,}|(?:0|\d{4,})?\.\d+"
        r"|\d{1,3}\.(?:\d{1,2}|\d{4,})"
    )
    digits = [match[0] for label in labels if (match := re.search(r"[\d.][\d.,'’ ]*\d", label))]
    commas = sum(bool(only_comma.fullmatch(one)) for one in digits)
    return commas > sum(bool(only_point.fullmatch(one)) for one in digits)
