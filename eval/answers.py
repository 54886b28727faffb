"""The answer that a text states: `strict` as a person reads it, `paper` as the paper's code did."""

import re

from data.markup import FINAL, plain
from data.numerals import label_number
from eval.announced import own_text, statements
from eval.letters import strict_letter
from eval.numbers import strict_number
from eval.words import strict_label
from files.errors import UserError, unknown

ANSWERS = "labels:answer1|answer2|answer3|answer4|answer5"
KINDS = {  # data set -> kind of its answers; "labels:" and the words that an answer is one of
    **dict.fromkeys(
        ("addsub", "multiarith", "singleeq", "gsm8k", "svamp", "mawps", "multiarith-unseen"),
        "number",
    ),
    **dict.fromkeys(("aqua", "mathqa"), "letter"),
    "boolq": "labels:true|false",
    "piqa": "labels:solution1|solution2",
    "social_i_qa": "labels:answer1|answer2|answer3",
    "hellaswag": "labels:ending1|ending2|ending3|ending4",
    "winogrande": "labels:option1|option2",
    **dict.fromkeys(("arc-easy", "arc-challenge"), ANSWERS),
    "openbookqa": "labels:answer1|answer2|answer3|answer4",
}
# The paper's code looks for five labels in the sets of three and four, too.
PAPER_LABELS = dict.fromkeys(("social_i_qa", "openbookqa"), ANSWERS.removeprefix("labels:"))
MODES = ("strict", "paper")
TOLERANCE = 1e-3
LETTERS = "ABCDE"


class CommaNumber(float):
    """A number of a column that writes decimals with a comma: its label "1.234" is 1234."""


def read_answer(text: str, dataset: str, mode: str = "strict") -> float | str | None:
    """The answer `text` gives to a problem of `dataset`, or None where it gives none.

    dataset: a name of KINDS in any case, or a kind: number, number:comma, letter (A to E),
    letters:a|b|c, labels:yes|no, text. docs/evaluation.md has a table of them. mode: "strict" reads
    as a person would; "paper" as the paper's code does, mistakes included.
    Returns a number, a letter as the kind spells it, a label in small letters, or a text.
    Raises UserError for an unknown data set or mode.
    """
    if mode not in MODES:
        raise unknown("answer mode", mode, MODES)
    kind, _, given = kind_of(dataset).partition(":")
    if mode == "paper":
        return read_as_paper(text, kind, PAPER_LABELS.get(dataset.lower(), given))
    if kind == "number":
        number = strict_number(text, comma=given == "comma")
        return CommaNumber(number) if given and number is not None else number
    if kind in ("letter", "letters"):
        return strict_letter(text, options_of_kind(dataset))
    if kind == "labels":
        return strict_label(text, options_of_kind(dataset))
    return strict_text(text)


def kind_of(dataset: str) -> str:
    """The kind of answers of a data set, or the kind itself. Raises UserError."""
    if dataset in ("number", "number:comma", "letter", "text"):
        return dataset
    if dataset.startswith(("letters:", "labels:")):
        return dataset
    if dataset.lower() not in KINDS:
        raise unknown("data set", dataset, KINDS)
    return KINDS[dataset.lower()]


def options_of_kind(dataset: str) -> tuple[str, ...]:
    """The options of a kind, as it spells them; none for numbers and texts. Raises UserError."""
    kind = kind_of(dataset)
    if kind == "letter":
        return tuple(LETTERS)
    name, _, given = kind.partition(":")
    return tuple(given.split("|")) if name in ("letters", "labels") else ()


def is_numeric(dataset: str) -> bool:
    """Whether the answers of a data set are numbers."""
    return kind_of(dataset).startswith("number")


def fits(dataset: str, label: str) -> bool:
    """Whether a label is of the kind of answers of a data set. Raises UserError."""
    if is_numeric(dataset):
        return label_number(label, kind_of(dataset) == "number:comma") is not None
    options = options_of_kind(dataset)
    known = label.strip().casefold() in map(str.casefold, options)
    return not options or known or any(is_right(label, option) for option in options)


def reaches(rationale: str, gold: str) -> bool:
    """Whether a training rationale arrives at its answer: its last number is the gold one, or it
    states the gold letter or word.

    The data's own `pred` column is read in this way: 2,499 of the 3,260 rationales of
    math-v1. A label that is no plain number, such as 1/2, is looked for by the strict reader.
    """
    gold = gold.strip()
    if not gold:
        return False
    number = label_number(gold)
    if number is not None:
        plainly = re.fullmatch(r"[-+]?[\d,]*\.?\d+", gold)
        read = paper_number(rationale) if plainly else strict_number(rationale)
        return is_right(read, gold)
    if len(gold) == 1 and gold.lower() != gold.upper():
        first, last = ("A", max("E", gold)) if gold.isupper() else ("a", max("e", gold))
        letters = tuple(map(chr, range(ord(first), ord(last) + 1))) if gold.isascii() else (gold,)
        return is_right(strict_letter(rationale, letters), gold)
    return is_right(strict_label(rationale, (plain(gold),)), gold)


def is_right(answer: float | str | None, gold: float | str) -> bool:
    """Whether an answer equals the label: numbers within 1e-3; words up to case, white space and
    the last full stop; a text also where another sentence follows the label's. None is wrong.

    Raises UserError where the answer is a number and the label is not.
    """
    if answer is None:
        return False
    if isinstance(answer, float):
        return abs(answer - gold_number(gold, isinstance(answer, CommaNumber))) <= TOLERANCE
    answer, gold = (plain(str(text)).replace(FINAL, "").casefold() for text in (answer, gold))
    answer, gold = (text.strip(" \n").rstrip(" .\n") for text in (answer, gold))
    words = r"\s".join(map(re.escape, gold.split()))
    return bool(words) and re.match(rf"{words}(?:$|[.!?]+\s|\n)", answer) is not None


def gold_number(gold: float | str, comma: bool = False) -> float:
    """A label as a number. comma: see data/numerals.py. Raises UserError for another label."""
    number = label_number(str(gold), comma)
    if number is None:
        raise UserError(f"the label {gold!r} is not a number")
    return number[0]


def strict_text(text: str) -> str | None:
    """All that follows the last trigger, as a label may have several sentences; or the whole
    text."""
    text = own_text(text, lambda line: False)
    return (statements(text) or [text])[0].strip().rstrip(" .\n") or None


def judge(prediction: dict, read_as: str) -> dict:
    """The answer of a prediction by both readers, and whether each is right.

    read_as: a data set, or a kind of answers; with a kind, a label of another one is compared as a
    text.
    """
    if prediction.get("too_long"):
        return {"answer": None, "right": False, "paper_answer": None, "paper_right": False}
    output, gold = prediction["output"], prediction["gold"]
    if "likelihoods" in prediction:
        answer = paper = output
    else:
        if read_as == kind_of(read_as) and not fits(read_as, gold):
            read_as = "text"
        answer = read_answer(output, read_as)
        # The paper's code read what stands between "### Response:" of the prompt and a second one.
        paper = read_answer(output.split("### Response:")[0], read_as, "paper")
    return {
        "answer": answer,
        "right": is_right(answer, gold),
        "paper_answer": paper,
        "paper_right": is_right(paper, gold),
    }


# ---------------------------------------------------------------- paper
def read_as_paper(text: str, kind: str, labels: str) -> float | str | None:
    if kind == "number":
        return paper_number(text)
    if kind == "letter" or (kind == "letters" and set(labels.split("|")) <= set(LETTERS)):
        labels = "[A-E]"
    elif kind not in ("letters", "labels"):
        return text.strip() or None
    found = re.search(labels, text)
    return found[0] if found else None


def paper_number(text: str) -> float | None:
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found and len(found[-1]) < 300 else None
