"""The numbers of a text: digits, fractions, powers, magnitudes; and number words. Texts are plain ones (eval/answers.py `plain`)."""

import re

LARGEST = 1e15  # a runaway string of digits is no answer
SCALES = {"hundred": 100, "thousand": 1e3, "k": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

MINUS = "-\u2212\u2013"  # first in a character class, where it begins with a hyphen
NUMBER = re.compile(
    r"(?<![\w.,/^])(?<!\d:)"  # not the tail of a word, another number, a clock time or a power
    rf"(?P<minus>(?<![\w)%])(?:(?<![\d)%]\s)[{MINUS}](?=\S)|(?<!\n)(?<![\w)%]\s)[{MINUS}]\s))?"  # not that of a difference, nor a bullet
    rf"(?:[$€£]\s?(?P<inner>[{MINUS}])?)?"
    r"(?P<digits>(?>\d{1,3}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+))"
    r"(?:\s?/\s?(?P<below>\d{1,9})(?![\d/])"  # 29/3
    r"|\s(?:and\s)?(?P<top>\d{1,3})/(?P<bottom>\d{1,3})(?![\d/])"  # 1 1/2
    rf"|(?:[eE]|\s?[x×*·]\s?10\^)(?P<ten>[{MINUS}+]?\d{{1,3}})(?!\w)"  # 1e5, 1.5 x 10^6
    rf"|\^(?P<power>[{MINUS}+]?\d{{1,3}}))?"  # 2^3
    r"(?!\d|:\d|\^)"
    r"(?:\s?(?P<scale>(?i:hundred|thousand|million|billion|trillion)\b)|(?P<k>[kK])(?!\w))?"  # 5 million, 5k
)

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
VALUES = {word: i for i, word in enumerate(ONES)} | {word: 20 + 10 * i for i, word in enumerate(TENS)} | {"a": 1}
PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "fourth": 4, "fourths": 4, "quarter": 4, "quarters": 4, "fifth": 5, "fifths": 5}
SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(ONES[1:10])})\b)?|(?:{'|'.join(ONES[::-1])}))"
GROUP = rf"(?:a hundred|{SMALL}(?: hundred)?)(?:(?<=hundred)(?: and)? {SMALL})?"
WORDS = re.compile(rf"\b({GROUP}(?: (?:thousand|million|billion)\b(?:,? (?:and )?{GROUP})?){{0,4}})\b(?:[ -]({'|'.join(PARTS)})\b)?", re.IGNORECASE)


def numbers(text: str) -> list[float]:
    """Every number of a text, in order: thousands separators, currency, fractions, powers of ten and magnitudes are read."""
    return [number for match in NUMBER.finditer(text) for number in values(match)]


def bare_number(text: str) -> bool:
    """Whether a text is a number and nothing else, no quotient either."""
    return bool(NUMBER.fullmatch(text.strip(" $%"))) and "/" not in text


def values(match: re.Match) -> list[float]:
    """The number of a match, two for what only looks like a mixed one (5 3/2), none for a division by zero or what is too large to be meant."""
    sign = -1.0 if match["minus"] or match["inner"] else 1.0
    scale = SCALES[(match["scale"] or match["k"] or "").lower()] if match["scale"] or match["k"] else 1.0
    try:
        found = magnitudes(match)
    except (OverflowError, ZeroDivisionError):
        return []
    return [sign * scale * one for one in found if scale * one <= LARGEST]


def magnitudes(match: re.Match) -> list[float]:
    """The number of a match without sign and scale. Raises OverflowError and ZeroDivisionError."""
    first = float(re.sub(r"[, ]", "", match["digits"]))
    if match["below"]:
        return [first / int(match["below"])] if "." not in match["digits"] and first <= LARGEST else []
    if match["top"]:
        part = int(match["top"]) / int(match["bottom"])
        return [first + part] if part < 1 and first.is_integer() else [first, part]
    if match["ten"]:
        return [float(f"{first}e{signed(match['ten'])}")]
    if match["power"]:
        return [first ** signed(match["power"])]
    return [first]


def signed(digits: str) -> int:
    return int(re.sub(f"[{MINUS}]", "-", digits))


def in_digits(text: str) -> str:
    """A text with its number words as digits: twenty-five 25, two and a half 2 1/2, three quarters 3/4."""
    return WORDS.sub(digits_of, re.sub(r"(?i) and (?:a|one)[ -]half\b", " 1/2", text))


def digits_of(match: re.Match) -> str:
    whole = value_of(match[1])
    return f"{whole}/{PARTS[match[2].lower()]}" if match[2] else str(whole)


def value_of(words: str) -> int:
    total = group = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "hundred":
            group *= 100
        elif word in SCALES:
            total, group = total + group * int(SCALES[word]), 0
        else:
            group += VALUES.get(word, 0)  # "and" adds nothing
    return total + group
