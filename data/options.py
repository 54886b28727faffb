"""The options of a multiple-choice problem, such as AQuA's, as lines of its prompt."""

import re

from data.conversations import Unusable

OWN_LABEL = re.compile(r"\s*\(?(?:[A-Za-z]|\d{1,2})\s*[).:]")  # "A)21", "(b) x", "1. x"
SHORT_LABEL = re.compile(r"\w{1,10}")
MOST = 1000  # options of a problem


def first_label(entries: list, columns: dict[str, str]) -> tuple[str, list[str]]:
    """(the label of the first option, what is to be said of it), where options have none.

    It is of the answers' kind: A, a, 0 or 1. Numbers begin with 0 when an answer is 0, and with 1
    when one is the number of the options.
    """
    if "options" not in columns:
        return "A", []
    pairs = [
        (str(entry.get(columns.get("answer"), "")).strip(), texts_of(entry.get(columns["options"])))
        for entry in entries if isinstance(entry, dict)
    ]  # fmt: skip
    bare = [
        (answer, texts) for answer, texts in pairs
        if answer and texts and not all(map(OWN_LABEL.match, texts))
    ]  # fmt: skip
    if bare and all(answer.isdecimal() and len(answer) < 5 for answer, _ in bare):
        from_one = any(int(answer) == len(texts) for answer, texts in bare)
        zero = any(int(answer) == 0 for answer, _ in bare)
        label = "1" if from_one and not zero else "0"
        return label, [f"options: numbered from {label}, as the answers are"]
    return "a" if bare and all(answer.islower() for answer, _ in bare) else "A", []


def texts_of(value) -> list[str]:
    """The options that have no labels of their own in another list; none where that is so."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    return []


def options_of(value, label: str) -> list[str]:
    """The options of a row as lines.

    value: a list of texts, {"text": [...], "label": [...]} as ARC has it, or {"A": "x", "B": "y"}
    as MedQA has it. label: of the first option, where they have none of their own. Raises Unusable.
    """
    if value is None:
        return []
    labels = None
    if isinstance(value, dict) and "text" not in value:
        texts = {key: text for key, text in value.items() if text is not None}  # Arrow fills up
        if not texts or not all(map(SHORT_LABEL.fullmatch, texts)):
            raise Unusable('has options that are no list of texts, and not {"A": TEXT, ...}')
        labels, value = list(texts), list(texts.values())
    elif isinstance(value, dict):
        value, labels = value.get("text"), value.get("label")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Unusable("has options that are no list of texts")
    if len(value) > MOST:
        raise Unusable(f"has {len(value):,} options, too many")
    if labels is None:
        if all(map(OWN_LABEL.match, value)):
            return value
        start = int(label) if label.isdecimal() else ord(label)
        name = str if label.isdecimal() else chr
        labels = [name(start + i) for i in range(len(value))]
    if not isinstance(labels, list) or len(labels) != len(value):
        raise Unusable("has options and labels of different numbers")
    return [f"{label}) {text}" for label, text in zip(labels, value, strict=True)]
