"""The rows of a run: read, filtered, compared with the test sets, made into examples; and what is said of each step."""

import random
from dataclasses import dataclass, replace

from data.batches import Example, encode_row, pack_text
from data.chat_template import RefusedMessages
from data.leakage import Leak, leakage, seen_sets
from data.prompts import Template
from data.sources import Data, load_data
from eval.answers import reaches
from files.errors import UserError
from train.settings import Settings

MOST_REFUSED = 100  # rows at the beginning that a template may have no form for


def load_rows(s: Settings) -> tuple[Data, list[str]]:
    """(the data of the settings, what was left out of it, in words). Raises UserError."""
    data = load_data(
        s.data,
        s.data_dir,
        s.seed,
        tests=s.tests,
        columns=s.columns,
        test_share=s.test_share,
        strict_rows=s.strict_rows,
    )
    kept = only_right(data) if s.only_right else data
    if not kept.train:
        why = (
            " that reach their answer"
            if s.only_right
            else ""
            if data.name == "none"
            else ": it is a test set without rationales"
        )
        raise UserError(f"data {data.name} has no rows to train on{why}")
    told = f"{len(kept.train):,} of {len(data.train):,} rows reach the right answer; the others are left out (only_right)"
    return kept, [*kept.notes, *([told] if s.only_right else [])]


def only_right(data: Data) -> Data:
    """The same with those training rows alone whose rationale reaches the right answer."""
    return replace(data, train=[row for row in data.train if reaches(row["output"], row["answer"])])


def check_leakage(data: Data, tests: dict[str, list[dict]], allowed: bool) -> dict[str, Leak]:
    """What of the tests is in the training rows. Raises UserError when a test set as such is, unless that is allowed."""
    leaks = leakage(data.train, tests, near=not data.from_forms, is_text=data.is_text)
    seen = seen_sets(leaks)
    if seen and not allowed:
        told = ", ".join(
            f"{name} ({leaks[name].count('twin')} of {leaks[name].total} problems)" for name in seen
        )
        raise UserError(
            f"the training rows of {data.name} hold the test set {told}: accuracy on it would say nothing. Choose other --tests, "
            "or --train-on-test trains all the same and the result says so"
        )
    return leaks


def check_earlier(leaks: list[dict[str, Leak]], allowed: bool) -> None:
    """Raise UserError when the adapter that is trained further was trained on one of the test sets,
    unless that is allowed."""
    seen = list(dict.fromkeys(name for one in leaks for name in seen_sets(one)))
    if seen and not allowed:
        raise UserError(
            f"the adapter that this run begins with was trained on the test set {', '.join(seen)}: "
            "accuracy on it would say nothing. Choose other --tests (or the --seed that held "
            "the same rows out), or --train-on-test trains all the same and the result says so"
        )


def leak_lines(leaks: dict[str, Leak]) -> list[str]:
    """The leakage report in words."""
    lines = [
        f"{name}: {leak.count('twin')} of {leak.total} test problems are in the training rows word for word, {leak.count('near')} nearly so"
        for name, leak in leaks.items()
        if leak.found
    ]
    seen = seen_sets(leaks)
    return [*lines, *([f"TRAINED ON THE TEST SET: {', '.join(seen)}"] if seen else [])]


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids.

    cut: rows that were cut off at train.cutoff. refused: rows that the template has no form for,
    which are left out. lines: what is to be said of both.
    """

    examples: list[Example]
    cut: int
    refused: int
    lines: list[str]


def encode_rows(
    tokenizer, rows: list[dict], is_text: bool, form: Template, s: Settings, held_out: bool = False
) -> Encoded:
    """Training rows as Examples with a token to learn each, or rows held out to measure the loss.

    Plain text is packed to full rows. A row that the template has no form for is left out, and
    so is one whose response begins behind train.cutoff. Raises UserError where no row to train on
    is left, and with strict_rows for a row that is refused.
    """
    if is_text:
        return encode_text(tokenizer, rows, s)
    encoded, refused = [], []
    for row in rows:
        try:
            encoded.append(encode_row(tokenizer, row, form, s.train.cutoff, s.train.prompt_weight))
        except RefusedMessages as error:
            refused.append((row, str(error)))
            if not (encoded or held_out) and len(refused) == MOST_REFUSED:
                break  # it refuses them all
    if not encoded and not held_out:
        raise UserError(f"{refused[0][1]}: use another --template")
    if refused and s.strict_rows:
        raise UserError(f"{refused_line(refused, len(rows), held_out)} (--strict-rows)")
    examples = [example for example, _ in encoded if any(example.weights[1:])]
    if not examples and not held_out:
        raise UserError(
            f"no row keeps a token to learn within train.cutoff = {s.train.cutoff} tokens: raise it"
        )
    cut, empty = sum(cut for _, cut in encoded), len(encoded) - len(examples)
    lines = [refused_line(refused, len(rows), held_out)] if refused else []
    if cut:
        lost = f"; {empty} had no room for a response and were left out" if empty else ""
        which = "held-out rows" if held_out else "rows"
        lines.append(
            f"{cut} of {len(rows):,} {which} are longer than {s.train.cutoff} tokens and were cut "
            f"off there (train.cutoff){lost}"
        )
    if not held_out:
        lines += chat_lines(rows, form, len(refused))
    return Encoded(examples, cut, len(refused), lines)


def refused_line(refused: list[tuple[dict, str]], total: int, held_out: bool) -> str:
    """The rows that a template has no form for, by reason, with the first of each."""
    reasons: dict[str, list[dict]] = {}
    for row, reason in refused:
        reasons.setdefault(reason, []).append(row)
    named = [
        f"{reason} ({len(rows):,}, the first with {(rows[0]['instruction'] or rows[0]['output'])[:50]!r})"
        for reason, rows in list(reasons.items())[:3]
    ]
    which = "held-out rows" if held_out else "rows"
    return (
        f"{len(refused):,} of {total:,} {which} are left out, the template has no form for them: "
        f"{'; '.join(named)}"
    )


def chat_lines(rows: list[dict], form: Template, refused: int) -> list[str]:
    """What is to be said of a chat template, from the first row that it has a form for."""
    if not form.chat:
        return []
    for row in rows[: refused + 1]:
        try:
            chat = form.conversation(row)
        except RefusedMessages:
            continue
        if chat.opens:
            return [
                f"the chat template opens {chat.opens.strip()} in the prompt alone: "
                "the trained response starts behind it"
            ]
        if chat.marked and chat.spans[-1][1] < len(chat.text.rstrip()):
            return [
                "the chat template's {% generation %} blocks leave out "
                f"{chat.text[chat.spans[-1][1] :].strip()!r}, the end of a turn: it is not trained"
            ]
        return []
    return []


def encode_text(tokenizer, rows: list[dict], s: Settings) -> Encoded:
    """Plain text, packed. Raises UserError where there is less than two tokens."""
    examples, tokens = pack_text(tokenizer, [row["output"] for row in rows], s.train.cutoff)
    if not examples:
        raise UserError(f"the text of {s.data} has no token to learn")
    several = "s" * (len(rows) > 1)
    line = (
        f"plain text: {len(rows):,} text{several}, {tokens:,} tokens, packed into "
        f"{len(examples):,} rows of {s.train.cutoff}; no prompt, loss on all tokens"
    )
    return Encoded(examples, 0, 0, [line])


def hold_out(
    examples: list[Example], count: int, seed: int
) -> tuple[list[Example], list[Example], int]:
    """(rows to train on, `count` rows to validate on, drawn by the seed, how many twins of these were left out of both). Raises UserError."""
    drawn = set(
        random.Random(f"validation {seed}").sample(range(len(examples)), min(count, len(examples)))
    )
    held_out = [examples[row] for row in sorted(drawn)]
    seen = {tuple(example.ids) for example in held_out}
    training = [
        example
        for row, example in enumerate(examples)
        if row not in drawn and tuple(example.ids) not in seen
    ]
    if not training:
        raise UserError(
            f"train.validation_rows = {count} leaves no row of {len(examples)} to train on"
        )
    return training, held_out, len(examples) - len(training) - len(held_out)


def validation_lines(held_out: int, twins: int, s: Settings) -> list[str]:
    if not held_out:
        return []
    also = f"; {twins} more that read the same are left out" if twins else ""
    return [
        f"{held_out:,} rows are held out to validate on every {s.train.validate_every or s.train.save_every} steps{also}"
    ]
