"""What a text says its answer is. Pure functions; `strict` reads it as a person would, `paper` as the paper's code did."""

import math
import re
from fractions import Fraction

from model.errors import UserError, unknown

ANSWERS = "labels:answer1|answer2|answer3|answer4|answer5"
KINDS = {  # data set -> the kind of its answers; "labels:" and the words one of which it is (the paper's label format)
    **dict.fromkeys(("addsub", "multiarith", "singleeq", "gsm8k", "svamp", "mawps", "multiarith-unseen"), "number"),
    "aqua": "letter",
    "boolq": "labels:true|false",
    "piqa": "labels:solution1|solution2",
    "social_i_qa": "labels:answer1|answer2|answer3",
    "hellaswag": "labels:ending1|ending2|ending3|ending4",
    "winogrande": "labels:option1|option2",
    "arc-easy": ANSWERS,
    "arc-challenge": ANSWERS,
    "openbookqa": "labels:answer1|answer2|answer3|answer4",
}
PAPER_LABELS = dict.fromkeys(("social_i_qa", "openbookqa"), ANSWERS.removeprefix("labels:"))  # its code looked for five in sets of three and four, too
MODES = ("strict", "paper")
TOLERANCE = 1e-3
LARGEST = 1e15
LETTERS = "ABCDE"

TRIGGER = re.compile(r"\b(?:answer|result|total)\b(?:\s*\([^)]*\))?\s*(?:is|are|:|=|would be|will be)\s*:?|####", re.IGNORECASE)
NUMBER = re.compile(
    r"(?<![\w.,/:^])"  # not the tail of a word, another number, a clock time or a power
    r"(?P<sign>[-\u2212]\s?)?[$€£]?\s?(?P<minus>[-\u2212])?"
    r"(?P<digits>\d{1,3}(?:[,\u00a0\u202f ]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<below>\d{1,9})(?!\d|/))?"
    r"(?!\d|:\d|\^)"
)
LETTER = re.compile(r"(?<![A-Za-z0-9'’])\(?\s?([A-E])\s?\)?(?![A-Za-z0-9'’])")
WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()
WORD = re.compile(r"\b(" + "|".join(WORDS) + r")\b", re.IGNORECASE)


def read_answer(text: str, dataset: str, mode: str = "strict") -> float | str | None:
    """The answer `text` gives to a problem of `dataset`: a number, an option letter, a label, or None where it gives none.

    dataset: a name of KINDS in any case, or a kind: number, letter, labels:yes|no, text. mode "strict" reads what follows the last
    "answer is", else the last number or stand-alone letter; "paper" is compatible with the paper's code, mistakes included.
    Raises UserError for an unknown data set or mode.
    """
    if mode not in MODES:
        raise unknown("answer mode", mode, MODES)
    strict = mode == "strict"
    kind, _, labels = kind_of(dataset).partition(":")
    if kind == "number":
        return strict_number(text) if strict else paper_number(text)
    if kind == "letter":
        return strict_letter(text) if strict else paper_letter(text)
    if kind == "labels":
        return strict_choice(text, labels) if strict else paper_choice(text, PAPER_LABELS.get(dataset.lower(), labels))
    return strict_text(text) if strict else text.strip() or None


def response_of(output: str) -> str:
    """What the paper's code read of an output: it took the text between the first "### Response:", of the prompt, and a second one."""
    return output.split("### Response:")[0]


def kind_of(dataset: str) -> str:
    """The kind of answers of a data set, or the kind itself. Raises UserError."""
    if dataset in ("number", "letter", "text") or dataset.startswith("labels:"):
        return dataset
    if dataset.lower() not in KINDS:
        raise unknown("data set", dataset, KINDS)
    return KINDS[dataset.lower()]


def is_numeric(dataset: str) -> bool:
    """Whether the answers of a data set are numbers."""
    return kind_of(dataset) == "number"


def reaches(rationale: str, gold: str) -> bool:
    """Whether a training rationale arrives at its answer: its last number is the gold one, or it states the gold letter or word.

    This is the reading behind the data's own `pred` column: 2,499 of the 3,260 rationales of math-v1.
    """
    gold = gold.strip()
    if not gold:
        return False
    try:
        return is_right(paper_number(rationale), gold_number(gold))
    except UserError:
        return is_right(strict_letter(rationale) if len(gold) == 1 and gold in LETTERS else strict_choice(rationale, re.escape(gold)), gold)


def is_right(answer: float | str | None, gold: float | str) -> bool:
    """Whether an answer read equals the gold one: numbers within 1e-3, words ignoring case; None is always wrong."""
    if answer is None:
        return False
    if isinstance(answer, float):
        return abs(answer - gold_number(gold)) <= TOLERANCE
    return str(answer).lower() == str(gold).strip().lower()


def gold_number(gold: float | str) -> float:
    """A label as a number. Raises UserError for a label that is none."""
    try:
        number = float(str(gold).replace(",", ""))
        if not math.isfinite(number):
            raise ValueError
        return number
    except ValueError:
        raise UserError(f"the label {gold!r} is not a number") from None


# ---------------------------------------------------------------- strict
def said(text: str) -> tuple[str, bool]:
    """The part of a text that states its answer, and whether a trigger announced it; a runaway next problem is cut off."""
    text = re.split(r"\n\s*###\s*Instruction", text)[0]
    ends = [match.end() for match in TRIGGER.finditer(text)]
    for end in reversed(ends):  # the last trigger that is followed by anything
        if text[end:].strip(" .\n"):
            return text[end:], True
    return text, False


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or line end."""
    return re.split(r"\.(?:\s|$)|\n", text.strip(), maxsplit=1)[0]


def strict_number(text: str) -> float | None:
    stated, announced = said(text)
    if announced:
        sentence = first_sentence(stated)
        found = numbers(sentence.rpartition("=")[2]) or numbers(sentence)
        if found:
            return found[0]
        word = WORD.search(sentence)
        if word:
            return float(WORDS.index(word.group(1).lower()))
    found = numbers(stated)
    return found[-1] if found else None


def numbers(text: str) -> list[float]:
    """Every number of a text, in order: thousands separators, currency, U+2212 and simple fractions are read."""
    found = []
    for match in NUMBER.finditer(text):
        value = float(re.sub(r"[,\s]", "", match["digits"]))
        if value > LARGEST:  # a runaway string of digits is no answer
            continue
        if match["below"]:
            if int(match["below"]) == 0 or "." in match["digits"]:
                continue
            value = float(Fraction(int(value), int(match["below"])))
        sign = match["minus"] or match["sign"]
        if match["sign"] and re.search(r"[\w)]\s*$", text[: match.start()]):
            sign = match["minus"]  # "49 - 34": a difference, not minus 34
        found.append(-value if sign else value)
    return found


def strict_letter(text: str) -> str | None:
    stated, announced = said(text)
    found = LETTER.findall(first_sentence(stated) if announced else stated)
    if not found and announced:
        return None
    if not announced:  # "A car" in a sentence is no option: only a bracketed letter or one that stands alone counts
        found = re.findall(r"\(\s?([A-E])\s?\)", stated) or re.findall(r"(?:^|\n)\s*([A-E])\s*[.)]?\s*(?:$|\n)", stated)
        return found[-1] if found else None
    return found[0]


def strict_choice(text: str, labels: str) -> str | None:
    stated, announced = said(text)
    found = re.findall(rf"\b(?:{labels})\b", stated.lower())
    if not found:
        return None
    return found[0] if announced else found[-1]


def strict_text(text: str) -> str | None:
    stated, announced = said(text)
    return (first_sentence(stated) if announced else stated).strip(" .\n") or None


# ---------------------------------------------------------------- paper
def paper_number(text: str) -> float | None:
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found and len(found[-1]) < 300 else None


def paper_letter(text: str) -> str | None:
    found = re.search(r"[A-E]", text)
    return found.group(0) if found else None


def paper_choice(text: str, labels: str) -> str | None:
    found = re.search(labels, text)
    return found.group(0) if found else None
