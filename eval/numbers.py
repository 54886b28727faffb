"""Which number a text says its answer is."""

import re

from data.numerals import (
    CURRENCY,
    NEGATIVE,
    UNIT,
    found_numbers,
    in_digits,
    numbers,
    pattern,
    values,
)
from eval.announced import (
    SENTENCE_END,
    TOTAL,
    own_text,
    sentence_and_rest,
    statements,
    without_denials,
)

# Between two numbers of one calculation. An operator or an equals sign stands next to the second;
# words between are units, or say the operator.
WORD = r"(?!(?:because|since|as|so|for|if|when|where|with|and|but|or|which)\b)[A-Za-z°]++\.?"
LEFT = rf"\s?[!%)\]}}]*(?:\s?{WORD}){{0,3}}\s?"
RIGHT = rf"\s?[(\[{{]*(?:{CURRENCY}\s?)?"
OPERATOR = re.compile(
    rf"\(|{LEFT}(?:[-+*/×÷·\u2212–^]|(?<![A-Za-z])x){RIGHT}"
    rf"|{LEFT}\b(?:plus|minus|times|divided by|multiplied by|of|over)\s{RIGHT}"
    rf"|\s?{WORD}\sand\s"  # 1 hour and 30 minutes
)
EQUALS = re.compile(rf"{LEFT}==?\s?(?:[A-Za-z]{{1,20}}\s?=\s?)?[-+\u2212]?{RIGHT}")
MAKES = re.compile(  # only after a calculation: "6 + 7, which is 13"
    rf"{LEFT},?\s?(?:which |that |it )?(?:is|equals|makes|gives|leaves|or|are)\s"
    rf"(?:about |just |only |exactly )?{RIGHT}"
)
OTHERWISE = re.compile(rf"{LEFT},?\s?(?:or|i\.e\.,?|that is,?)\s")  # "6 pieces, or 6 * 2.5 = 15"
LONGEST_GAP = 60
CHECK = re.compile(  # what follows explains an answer that was given
    r"(?:^|\n|[.!;] |\()(?:(?:to|let me|let us|let's|we can) )?(?:double[- ]?)?"
    r"(?:check|verification|verify|proof|note|explanation|reason|reasoning)\b[^.:\n]{0,30}:",
    re.IGNORECASE,
)
ASIDE = re.compile(  # in a sentence, after its number
    r"\([^()]*\)|,? (?:because|since)\b.*|,? as\b[^=]{0,100}=.*", re.IGNORECASE | re.DOTALL
)
LEADING = re.compile(  # an answer at the very beginning: "18\nI checked", "18, since", "18 (I ..."
    r"\s?%?\s?(?:\n(?=[A-Za-z(])|[.!]\s(?=\D)|,?\s(?:because|since|as)\b|\s?\((?=[A-Za-z]))"
)
LISTED = re.compile(r"(?m)^\s?2[.):]\s")
ABOUT = r"(?:about |around |approximately |exactly |only |just |a total of )?"
FIRST_WORDS = re.compile(rf"(?i){ABOUT}(?:negative |minus )?-?\d")


def strict_number(text: str, comma: bool = False) -> float | None:
    """The number that `text` gives as its answer, or None.

    What is announced last counts, else a total after which no more is reckoned, else a number that
    the text begins with and then explains, else the last one. Text after the answer, such as a
    reason, a check or another problem, does not replace it. comma: see data/numerals.py.
    """
    text = without_denials(own_text(text, lambda line: is_only_number(line, comma)))
    text = NEGATIVE.sub("-", text)
    announced = statements(text)
    for stated in announced:
        number = stated_number(stated, comma, questions=len(announced) == 1)
        if number is not None:
            return number
    if announced:
        found = numbers(announced[0], comma)
        return found[-1] if found else None
    for stated in statements(text, TOTAL)[:1]:
        _, rest, _ = sentence_and_rest(stated)
        if not numbers(rest, comma):  # nothing more is reckoned
            number = stated_number(stated, comma)
            return number if number is not None else last_number(stated, comma)
    number = leading_number(text, comma)
    return last_number(text, comma) if number is None else number


def is_only_number(line: str, comma: bool = False) -> bool:
    """Whether a line is a number, maybe with a unit, and nothing else."""
    match = pattern(comma).match(line)
    rest = line[match.end() :] if match and values(match) else "?"
    return re.fullmatch(rf"\s?%?[$€£]?(?:\s?{UNIT})?\s?[.!]?", rest) is not None


def stated_number(stated: str, comma: bool, questions: bool = True) -> float | None:
    """The number of the sentence after a trigger. questions: whether a question may state it."""
    sentence, _, asks = sentence_and_rest(stated)
    if asks and not questions:
        return None
    words = in_digits(sentence)
    if FIRST_WORDS.match(words) and not FIRST_WORDS.match(sentence):
        return outcome(words, comma)
    number = outcome(sentence, comma)
    return outcome(words, comma) if number is None else number


def outcome(sentence: str, comma: bool) -> float | None:
    """The first number of a sentence, or what the calculation that it begins comes to:
    15 of "49 - 34 = 15 customers", 60 of "60 = 100 - 40", 15 of "6 pieces, or 6 * 2.5 = 15"."""
    sides: list[list[float]] = []  # of the equation, each with its numbers
    first, end = None, 0
    for match, number in found_numbers(sentence, comma):
        gap = sentence[end : match.start("digits")][: LONGEST_GAP + 1]
        if not sides or EQUALS.fullmatch(gap):
            sides.append([number])
        elif OPERATOR.fullmatch(gap):
            sides[-1].append(number)
        elif len(sides) == 1 < len(sides[0]) and MAKES.fullmatch(gap):
            return number
        elif sides == [[first]] and OTHERWISE.fullmatch(gap):
            sides = [[number]]
        else:
            break
        first = number if first is None else first
        end = match.end()
    if len(sides) > 1:  # the side that is a number and no calculation
        return next((side[0] for side in reversed(sides) if len(side) == 1), sides[0][0])
    return first


def leading_number(text: str, comma: bool) -> float | None:
    """The number that a text begins with, where an explanation follows and no list of steps."""
    match = pattern(comma).match(text)
    if not match or not LEADING.match(text, match.end()):
        return None
    found = values(match)
    steps = text[match.end() :][:1] in ".)" and (found == [1.0] or LISTED.search(text))
    return found[0] if len(found) == 1 and not steps else None


def last_number(text: str, comma: bool) -> float | None:
    """The last number in digits that no check follows, else the last in words."""
    check = CHECK.search(text)
    if check and numbers(text[: check.start()], comma):
        text = text[: check.start()]
    for sentence in reversed(SENTENCE_END.split(text)):
        found = numbers(ASIDE.sub("", sentence), comma) or numbers(sentence, comma)
        if found:
            return found[-1]
    found = [number for number in numbers(in_digits(text), comma) if number != 1]
    return found[-1] if found else None  # "this one" counts nothing
