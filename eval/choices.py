"""The options of multiple-choice problems, as texts whose likelihoods are compared."""

import re

from data.batches import encode_prompt, shared_start
from data.prompts import Template
from eval.answers import options_of_kind
from eval.letters import options_in
from files.errors import UserError


def form_of(rows: list[dict], kind: str) -> str:
    """The sentence that states an answer, with {} for it: that of the rows' own outputs where they
    share one, else "The answer is {}." for letters and "the correct answer is {}"."""
    own = {(row.get("output") or "").strip().removesuffix(row["answer"].strip()) for row in rows}
    whole = all((row.get("output") or "").strip().endswith(row["answer"].strip()) for row in rows)
    if whole and len(own) == 1:
        return own.pop().replace("{", "{{").replace("}", "}}") + "{}"
    return "The answer is {}." if kind.startswith("letter") else "the correct answer is {}"


def choices(
    tokenizer, row: dict, template: Template, kind: str, form: str, name: str
) -> dict[str, tuple[list[int], list[int]]]:
    """Option -> (ids before it, its own ids) of a multiple-choice problem.

    The options are those that the row lists ("Answer format: yes/no", "A) 5 B) 6"), else those of
    its kind. Raises UserError for a set without options and for a single one.
    """
    given = re.search(r"Answer format: *(\S+)\s*$", row["instruction"])
    labels = list(options_of_kind(kind))
    if not labels:
        raise UserError(
            f"{name} has no options whose likelihoods could be compared: its answers are generated "
            "(eval.scoring=generate)"
        )
    if kind.startswith("letter"):
        prompt = f"{row['instruction']}\n{row.get('input') or ''}"
        labels = list(options_in(prompt, tuple(labels), row["answer"]))
    elif given:
        labels = given[1].split("/")
    if len(labels) < 2:
        raise UserError(
            f"{name}: {row['instruction'][:60]!r} has the one option {labels[0]!r}: likelihoods "
            "need two to compare (eval.scoring=generate)"
        )
    _, before = encode_prompt(tokenizer, row, template)
    whole = {}
    for label in labels:
        text = template.whole(row | {"output": form.format(label)})
        whole[label] = tokenizer.encode(text, bos=not template.chat)
    # The same context for all options, so that their likelihoods compare.
    start = min(shared_start(before, ids) for ids in whole.values())
    return {label: (ids[:start], ids[start:]) for label, ids in whole.items()}


def spelled_as_in(rows: list[dict], kind: str) -> str:
    """A kind of words, spelled as the labels of these rows are: No and Yes, not no and yes."""
    if not kind.startswith("labels:"):
        return kind
    labels = options_of_kind(kind)
    spelling = {row["answer"].strip().lower(): row["answer"].strip() for row in reversed(rows)}
    seen = [spelling[label.lower()] for label in labels if label.lower() in spelling]
    styles = (str.upper, str.capitalize) if seen and len(seen) < len(labels) else ()
    style = next((one for one in styles if all(label == one(label) for label in seen)), str)
    return "labels:" + "|".join(spelling.get(label.lower(), style(label)) for label in labels)
