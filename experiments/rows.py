"""The rows of a run: read, filtered, compared with the test sets, encoded."""

import random
from dataclasses import dataclass, replace
from itertools import repeat

from data.batches import Example, encode_row, pack_text
from data.chat_template import RefusedMessages
from data.leakage import Leak, leakage, seen_sets
from data.prompts import Template
from data.sources import Data, load_data
from eval.answers import reaches
from files.errors import UserError
from model.tokenizer import Tokenizer
from train.settings import Settings

MOST_REFUSED = 100  # first rows that a template may refuse before a run gives up


def data_of(s: Settings) -> Data:
    """The data of the settings. Raises UserError."""
    own = {"columns": s.columns, "test_share": s.test_share, "strict_rows": s.strict_rows}
    return load_data(s.data, s.data_dir, s.seed, tests=s.tests, **own)


def load_rows(s: Settings) -> tuple[Data, list[str]]:
    """(the data of the settings, notes on what was left out of it). Raises UserError."""
    data = data_of(s)
    kept = only_right(data) if s.only_right else data
    if not kept.train:
        why = "" if data.name == "none" else ": it is a test set without rationales"
        why = " that reach their answer" if s.only_right else why
        raise UserError(f"data {data.name} has no rows to train on{why}")
    notes = list(kept.notes)
    if s.only_right:
        notes.append(
            f"{len(kept.train):,} of {len(data.train):,} rows reach the right answer; the others "
            "are left out (only_right)"
        )
    return kept, notes


def only_right(data: Data) -> Data:
    """The data with only those training rows whose rationale reaches the right answer."""
    return replace(data, train=[row for row in data.train if reaches(row["output"], row["answer"])])


def check_leakage(data: Data, tests: dict[str, list[dict]], allowed: bool) -> dict[str, Leak]:
    """What of the tests is in the training rows, by test set.

    Raises UserError where a whole test set is, unless `allowed`.
    """
    leaks = leakage(data.train, tests, near=not data.from_forms, is_text=data.is_text)
    seen = seen_sets(leaks)
    if seen and not allowed:
        sets = ", ".join(
            f"{name} ({leaks[name].count('twin')} of {leaks[name].total} problems)" for name in seen
        )
        raise UserError(
            f"the training rows of {data.name} hold the test set {sets}: accuracy on it would not "
            "mean anything. Choose other --tests, or use --train-on-test, and the result says so"
        )
    return leaks


def check_earlier(leaks: list[dict[str, Leak]], allowed: bool) -> None:
    """Raise UserError where the adapter that is trained further was trained on one of the test
    sets, unless `allowed`."""
    seen = list(dict.fromkeys(name for by_set in leaks for name in seen_sets(by_set)))
    if seen and not allowed:
        raise UserError(
            f"the adapter that this run begins with was trained on the test set {', '.join(seen)}: "
            "accuracy on it would not mean anything. Choose other --tests (or the --seed that held "
            "the same rows out), or use --train-on-test, and the result says so"
        )


def leak_line(name: str, leak: Leak) -> str:
    return (
        f"{name}: {leak.count('twin')} of {leak.total} test problems are in the training rows word "
        f"for word, {leak.count('near')} nearly so"
    )


def leak_lines(leaks: dict[str, Leak]) -> list[str]:
    """What of the tests is in the training rows, a line for each set of which something is."""
    lines = [leak_line(name, leak) for name, leak in leaks.items() if leak.found]
    seen = seen_sets(leaks)
    return [*lines, *([f"TRAINED ON THE TEST SET: {', '.join(seen)}"] if seen else [])]


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids."""

    examples: list[Example]
    cut: int  # rows cut off at train.cutoff
    refused: int  # rows that the template refuses, which are left out
    lines: list[str]  # notes on both


def encode_rows(
    tokenizer: Tokenizer,
    rows: list[dict],
    is_text: bool,
    template: Template,
    s: Settings,
    held_out: bool = False,
) -> Encoded:
    """Training rows, or rows held out to measure the loss, as Examples with a token to learn each.

    Plain text is packed to full rows. Rows that the template refuses and rows whose response begins
    after train.cutoff are left out. Raises UserError where no row to train on is left, and with
    strict_rows for a row that is refused.
    """
    if is_text:
        return encode_text(tokenizer, rows, s)
    encoded, refused = [], []
    chats = template.conversations(rows) if template.chat else repeat(None, len(rows))
    for row, chat in zip(rows, chats, strict=True):
        try:
            if isinstance(chat, RefusedMessages):
                raise chat
            encoded.append(
                encode_row(tokenizer, row, template, s.train.cutoff, s.train.prompt_weight, chat)
            )
        except RefusedMessages as error:
            refused.append((row, str(error)))
            if not (encoded or held_out) and len(refused) == MOST_REFUSED:
                break
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
        lost = f"; {empty} had no room for a response and were left out" * bool(empty)
        lines.append(
            f"{cut} of {len(rows):,} {kind_of_rows(held_out)} are longer than {s.train.cutoff} "
            f"tokens and were cut off there (train.cutoff){lost}"
        )
    if not held_out:
        lines += chat_lines(rows, template, len(refused))
    return Encoded(examples, cut, len(refused), lines)


def kind_of_rows(held_out: bool) -> str:
    return "held-out rows" if held_out else "rows"


def refused_line(refused: list[tuple[dict, str]], total: int, held_out: bool) -> str:
    """How many rows a template refuses, by reason, with the first row of each."""
    reasons: dict[str, list[dict]] = {}
    for row, reason in refused:
        reasons.setdefault(reason, []).append(row)
    named = [
        f"{reason} ({len(rows):,}, the first with "
        f"{(rows[0]['instruction'] or rows[0]['output'])[:50]!r})"
        for reason, rows in list(reasons.items())[:3]
    ]
    return (
        f"{len(refused):,} of {total:,} {kind_of_rows(held_out)} are left out, the template has no "
        f"form for them: {'; '.join(named)}"
    )


def chat_lines(rows: list[dict], template: Template, refused: int) -> list[str]:
    """What a chat template leaves out of training, from the first row that it does not refuse."""
    if not template.chat:
        return []
    for row in rows[: refused + 1]:
        try:
            chat = template.conversation(row)
        except RefusedMessages:
            continue
        if chat.opens:
            return [
                f"the chat template opens {chat.opens.strip()} only in the prompt: "
                "the trained response starts after it"
            ]
        rest = chat.text[chat.spans[-1][1] :].strip() if chat.marked else ""
        if rest:
            return [
                f"the chat template's {{% generation %}} blocks leave out {rest!r}, the end of a "
                "turn: it is not trained"
            ]
        return []
    return []


def encode_text(tokenizer: Tokenizer, rows: list[dict], s: Settings) -> Encoded:
    """Plain text, packed. Raises UserError for less than two tokens."""
    examples, tokens = pack_text(tokenizer, [row["output"] for row in rows], s.train.cutoff)
    if not examples:
        raise UserError(f"the text of {s.data} has no token to learn")
    line = (
        f"plain text: {len(rows):,} text{'s' * (len(rows) > 1)}, {tokens:,} tokens, packed into "
        f"{len(examples):,} rows of {s.train.cutoff}; no prompt, loss on all tokens"
    )
    return Encoded(examples, 0, 0, [line])


def hold_out(
    examples: list[Example], count: int, seed: int
) -> tuple[list[Example], list[Example], int]:
    """(rows to train on, `count` rows to validate on, how many twins of these were left out).

    The rows are drawn by the seed. Raises UserError where none is left to train on.
    """
    chosen = random.Random(f"validation {seed}").sample(
        range(len(examples)), min(count, len(examples))
    )
    held_out = [examples[row] for row in sorted(chosen)]
    seen, drawn = {tuple(example.ids) for example in held_out}, set(chosen)
    training = [
        e for row, e in enumerate(examples) if row not in drawn and tuple(e.ids) not in seen
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
    steps = s.train.validate_every or s.train.save_every
    return [f"{held_out:,} rows are held out to validate on every {steps} steps{also}"]
