"""Zero-shot-CoT logs (Kojima et al. 2022) -> training rows.

The paper made its data this way, from the rationales of a stronger model. A record stands between
two lines of 25 asterisks: "Nst data", "k_th_sampling", "Q: ...", "A: Let's think step by step." and
a rationale of one or more lines, the trigger "Therefore, the answer (arabic numerals) is" with the
answer, then pred_before, pred_after, pred_list, pred_mode, GT.
"""

import ast
import re
from collections import Counter
from pathlib import Path

from files.errors import UserError

RULE = "*" * 25
TRIGGER = re.compile(r"\n?Therefore,? [^\n]*?the answer(?: \([^)\n]*\))? is")
THINK = "Let's think step by step."  # unless the options at the top of the log say otherwise
SAMPLE = re.compile(r"(?ms)^Q: (.*?)\nA: ?(.*?)\npred_before : ?(.*?)\npred_after : ?(.*?)$")
TOLERANCE = 1e-3


def rows_from_log(path: Path, keep_wrong: bool = False) -> tuple[list[dict], Counter]:
    """({instruction, input, output, answer} of the records, why records were kept or left out).

    Rationales that reach the gold answer are kept (keep_wrong: all), of several samples of a
    problem each right one, duplicates once. Raises UserError for a file that is not such a log.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    think = thinking(text)
    counts: Counter = Counter()
    rows, seen = [], set()
    for record in re.split(rf"^{re.escape(RULE)}$", text, flags=re.MULTILINE):
        for sample in samples(record):
            row, verdict = row_from(sample, think, keep_wrong)
            if row and (row["instruction"], row["output"]) in seen:
                row, verdict = None, "left out: said before"
            if row:
                seen.add((row["instruction"], row["output"]))
                rows.append(row)
            counts[verdict] += 1
    if not counts:
        raise UserError(
            f"{path} holds no record of a zero-shot-CoT log "
            "(lines of 25 asterisks around Q:, A: and GT :)"
        )
    return rows, counts


def samples(record: str) -> list[str]:
    """The samples of a record, each followed by the gold answer; [] for text between records."""
    parts = re.split(r"^\d+_th_sampling$", record, flags=re.MULTILINE)
    if len(parts) < 2:
        return []
    gold = re.search(r"^GT : .*$", parts[-1], flags=re.MULTILINE)
    end = f"\n{gold[0]}\n" if gold else ""
    return [part if "\nGT : " in part or not gold else part.rstrip() + end for part in parts[1:]]


def thinking(text: str) -> str:
    """The phrase with which the run asked for a rationale."""
    found = re.search(r"""\bcot_trigger=("[^"\n]*"|'[^'\n]*')""", text)
    try:
        return ast.literal_eval(found[1]) if found else THINK
    except (ValueError, SyntaxError):
        return THINK


def row_from(sample: str, think: str, keep_wrong: bool) -> tuple[dict | None, str]:
    """(the row of one sample, or None; why)."""
    found = SAMPLE.search(sample)
    gold = re.search(r"^GT : *(.*?)\s*$", sample, flags=re.MULTILINE)
    if not found or not gold or not gold[1]:
        return None, "left out: cut short"
    question, answer, predicted = found[1].strip(), found[2].strip(), found[4].strip()
    if not question:
        return None, "left out: cut short"
    triggers = list(TRIGGER.finditer(answer))
    if not answer.startswith(think) or not triggers:
        return None, "left out: no rationale (zero-shot without a chain of thought)"
    rationale = answer[len(think) : triggers[-1].start()].strip()
    if not rationale:
        return None, "left out: empty rationale"
    if not predicted:
        return None, "left out: no answer was read"
    right = same(predicted, gold[1])
    if not right and not keep_wrong:
        return None, "left out: wrong answer"
    row = {
        "instruction": question,
        "input": "",
        "output": f"{rationale}\nThe answer is {predicted}.",
        "answer": gold[1],
    }
    return row, "kept: right answer" if right else "kept: wrong answer"


def same(predicted: str, gold: str) -> bool:
    """Whether the log's own reading is the gold answer: numbers within 1e-3, letters as such."""
    try:
        return abs(float(predicted.replace(",", "")) - float(gold.replace(",", ""))) <= TOLERANCE
    except ValueError:
        return predicted.strip() == gold.strip()
