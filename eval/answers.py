"""What a text says its answer is. Pure functions; `strict` reads it as a person would, `paper` as the paper's code did."""

import math
import re
import unicodedata

from eval.numbers import bare_number, in_digits, numbers
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
LETTERS = "ABCDE"

# Where an answer is announced. Of a total or a result more may be reckoned, and a text may speak of it after its answer: those come second.
STATES = r"(?:\s\([^)\n]{0,60}\))?(?:\sto\s[^.:=\n]{1,60}?)?\s?(?:(?:is|are|was|equals|comes to|(?:would|will|should|must) be)\s?[:=]?|[:=])"
ANSWER = re.compile(rf"\b(?:answers?|(?:correct|right|best) (?:option|choice|solution|ending))\b{STATES}|#{{4,}}(?! ?\w[^\n]{{0,80}}:)", re.IGNORECASE)
TOTAL = re.compile(rf"\b(?:result|total)\b{STATES}", re.IGNORECASE)
BEFORE = re.compile(  # "7 apples is the answer": the answer comes first
    r"(?<!\S)((?:\S{1,20}\s)?(?!(?:what|which|who|this|that|these|it|here|one|answer|option|choice)\b)\S{1,40})"
    r" is (?:the (?:\w+ )?(?:answer|option|choice)|correct)\b",
    re.IGNORECASE)
DENIED = re.compile(r"(?:\bnot|n['’]t)\s(?:(?:the|a|an|option|choice|answer)\s)?\S*\w\)?", re.IGNORECASE)

LETTER = r"(?<![\w'’°])(?<!\w-)([B-E]|A(?! (?!is|because|since|as|and|or|but|for|from)[a-z]))(?![\w'’]|-\w)"  # "A car" is no option
SMALL_LETTER = re.compile(r"\s?(?:option |choice )?(?:\(([a-e])\)|([a-e])(?=[.,:;)]?(?:\s?$|\s?\n|\. )))")  # straight after "the answer is"
MENTION = re.compile(  # without an announcement a letter must be bracketed, called an option, concluded (so C), or alone on its line
    rf"\(([A-E])\)|(?i:\b(?:options?|choices?|choose|pick|select|answer)\b)(?: is)?:? {LETTER}"
    rf"|(?i:\b(?:so|thus|hence|therefore|it is|it's)\b,?:?) {LETTER}(?=[.!]?(?:\s?$|\n|\. ))|(?m:^([A-E])[.)]{{0,2}}$)")
VALUE = r"(?:[^()\s]| (?!\(?[B-E][).:])){1,60}"
OPTIONS = re.compile(rf"\(?\bA[).:]{VALUE}(?:\s\(?[B-E][).:]{VALUE}){{2,}}")  # the problem's options told again
LABELLED = re.compile(r"^([A-E])(?:\)|[.:] )", re.MULTILINE)  # "C: 45"

# LaTeX and Markdown, and what is put for them, in this order
MARKUP = [(re.compile(pattern), new) for pattern, new in (
    (r"\\[dt]?frac\s?(?:\{([^{}]*)\}\s?\{([^{}]*)\}|(\d)(\d))", r" \1\3/\2\4"),
    (r"\\(?:text|mathrm|mathbf|textbf|mathit|textit)\s?\{([^{}]*)\}", r"\1"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\(?:left|right)\b|\\[,;!()\[\]]|(?<=\d)\\ (?=\d)", ""),
    (r"\\([$%])", r"\1"),
    (r"\{,\}", ","),
    (r"(?<=\d)\*\*(?=\d)", "^"),
    (r"\*\*|`|(?<!\w)_+|_+(?!\w)", ""),  # bold, code
    (r"(?<!\w)['\"‘“]([^\s'\"]{1,40})['\"’”](?!\w)", r"\1"),  # quotes
    (r"\\f?boxed\s?\{((?:[^{}]|\{[^{}]*\})*+)\}", "#### \\1\n"),  # a box is an answer, and ends with it
    (r"(?<=\d)\$(?!\d)", ""),
    (r"\s?\^\s?", "^"),
    (r"\^[{(]\s?([-+\u2212]?\d{1,3})\s?[})]", r"^\1"),
    (r"\(\s?([A-Ea-e])\s?\)", r"(\1)"),
)]
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def read_answer(text: str, dataset: str, mode: str = "strict") -> float | str | None:
    """The answer `text` gives to a problem of `dataset`: a number, an option letter, a label, or None where it gives none.

    dataset: a name of KINDS in any case, or a kind: number, letter, labels:yes|no, text. mode "strict" reads what follows the last
    "answer is", "####" or \\boxed, else a total after which no more is reckoned, else the last number, or letter put forward; "paper" is
    compatible with the paper's code, mistakes included.
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
        return is_right(strict_letter(rationale) if len(gold) == 1 and gold in LETTERS else strict_choice(rationale, re.escape(plain(gold))), gold)


def is_right(answer: float | str | None, gold: float | str) -> bool:
    """Whether an answer read equals the gold one: numbers within 1e-3; words ignoring case, white space and the last full stop, and a text
    too that goes on with another sentence after the gold ones; None is always wrong.
    """
    if answer is None:
        return False
    if isinstance(answer, float):
        return abs(answer - gold_number(gold)) <= TOLERANCE
    answer, gold = (plain(str(one)).casefold().rstrip(" .\n") for one in (answer, gold))
    words = r"\s".join(map(re.escape, gold.split()))
    return bool(words) and re.match(rf"{words}(?:$|[.!?]+\s|\n)", answer) is not None


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
def plain(text: str) -> str:
    """A text without its markup: LaTeX, bold, quotes; single blanks, powers and fractions as 2^3 and 1/2; a runaway next problem is cut off."""
    text = re.split(r"###\s*Instruction", text, maxsplit=1)[0].rstrip("#")
    text = re.sub(r"[¼-¾⅐-⅞]", lambda one: " " + unicodedata.normalize("NFKC", one[0]).replace("\u2044", "/"), text)
    text = re.sub(r"(?<=\d)[⁰¹²³⁴-⁹⁻]+", lambda power: "^" + power[0].translate(SUPERSCRIPTS), text)
    text = one_blank(text)
    for pattern, new in MARKUP:
        text = pattern.sub(new, text)
    return one_blank(text).strip()


def one_blank(text: str) -> str:
    return re.sub(r"\s+", lambda blanks: "\n" if "\n" in blanks[0] else " ", text)


def heard(text: str) -> str:
    """A plain text without what it denies, "not 5", and with "7 is the answer" turned round."""
    return BEFORE.sub(r"the answer is \1.", DENIED.sub("", plain(text)))


def statements(text: str, trigger: re.Pattern) -> list[str]:
    """What follows each trigger up to the next one, the last first, without those that nothing follows."""
    parts, end = [], len(text)
    for match in reversed(list(trigger.finditer(text))):
        parts.append(text[match.end() : end])
        end = match.start()
    return [part for part in parts if part.strip(" .\n")]


def sentence_and_rest(text: str) -> tuple[str, str]:
    """A text divided at the first full stop that ends a sentence, or line end."""
    sentence, _, *rest = *re.split(r"([.?](?:\s|$)|\n)", text.strip(), maxsplit=1), "", ""
    return sentence, rest[0]


def strict_number(text: str) -> float | None:
    text = heard(text)
    for stated in statements(text, ANSWER)[:1]:
        return stated_number(stated)
    for stated in statements(text, TOTAL)[:1]:
        sentence, rest = sentence_and_rest(stated)
        if not numbers(rest):  # nothing more is reckoned
            return stated_number(sentence)
    found = numbers(text) or [number for number in numbers(in_digits(text)) if number != 1]  # "this one" counts nothing
    return found[-1] if found else None


def stated_number(stated: str) -> float | None:
    """The number of what follows a trigger: the first of its sentence, else the last of all."""
    sentence, _ = sentence_and_rest(stated)
    found = numbers(outcome(sentence)) or numbers(sentence) or numbers(in_digits(sentence))
    if found:
        return found[0]
    found = numbers(stated)
    return found[-1] if found else None


def outcome(sentence: str) -> str:
    """The side of an equation that is its outcome: 60 = 100 - 40, but 49 - 34 = 15."""
    left, _, _ = sentence.partition("=")
    return left if bare_number(left) else sentence.rpartition("=")[2]


def strict_letter(text: str) -> str | None:
    text = heard(text)
    announced = statements(text, ANSWER)
    found = [letter for letter in map(stated_letter, announced) if letter]
    if announced:
        return found[0] if found else None
    return mentioned_letter(text)


def stated_letter(stated: str) -> str | None:
    """The letter of what follows a trigger: the first of its sentence, else one that the next sentences put forward."""
    sentence, rest = sentence_and_rest(stated)
    found = SMALL_LETTER.match(sentence) or re.search(LETTER, sentence)
    return found[found.lastindex].upper() if found else mentioned_letter(rest)


def mentioned_letter(text: str) -> str | None:
    """The last letter that a text puts forward as an option, or the one that it begins a line with."""
    own = OPTIONS.sub("", text)
    found = [match[match.lastindex] for match in MENTION.finditer(own)]
    if not found and len(set(LABELLED.findall(text))) == 1:
        found = LABELLED.findall(own)
    return found[-1] if found else None


def strict_choice(text: str, labels: str) -> str | None:
    text = plain(text) if "not" in labels.lower() else heard(text)
    spaced = re.sub(r"(?<=[a-z])(?=\d)", "(?: ?#|[ -])?", labels)  # "option 2" is option2
    announced = statements(text, ANSWER)
    for stated in announced or [text]:
        found = re.findall(rf"(?<!\w)(?:{spaced})(?!\w)", stated, re.IGNORECASE)
        if found:
            label = found[0 if announced else -1].lower()
            joined = re.sub(r"(?<=[a-z])[ #-]+(?=\d)", "", label)
            return joined if re.fullmatch(labels, joined, re.IGNORECASE) else label
    return None


def strict_text(text: str) -> str | None:
    """What follows the last trigger, all of it, for a label may have several sentences; or the whole text."""
    text = plain(text)
    return (statements(text, ANSWER) or [text])[0].strip().rstrip(" .\n") or None


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
