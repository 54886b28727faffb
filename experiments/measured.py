"""What a run is measured on: test problems whose labels can be compared, or, where data has no
answers, the loss on held-out rows."""

from dataclasses import dataclass

from data.answer_kinds import kind_in_words
from data.batches import Example
from data.prompts import Template
from data.sources import Data
from eval.answers import fits, gold_number, is_numeric, kind_of
from experiments.rows import encode_rows, hold_out
from files.errors import UserError, short_of_memory
from model.language import LanguageModel
from model.tokenizer import Tokenizer
from train.measure import mean_loss
from train.parallel import Processes
from train.settings import Settings
from train.teacher import Teacher

NAMED = 5  # labels that a line names


def first_problems(data: Data, s: Settings) -> dict[str, list[dict]]:
    """The first s.eval.items problems of each test set (0: all), whose labels can be compared.

    Raises UserError.
    """
    items = s.eval.items
    tests = {name: rows[:items] if items else rows for name, rows in data.tests.items()}
    check_labels(tests, data.reads)
    return tests


def check_labels(problems: dict[str, list[dict]], reads: dict[str, str] | None = None) -> None:
    """Raise UserError for a label of a known set that cannot be compared.

    Such labels of the user's own sets (`reads`) are compared as texts (`reading_lines`).
    """
    for name, rows in problems.items():
        if name in (reads or {}) or not is_numeric(name):
            continue
        for number, row in enumerate(rows):
            try:
                gold_number(row["answer"])
            except UserError as error:
                raise UserError(f"{name}, problem {number + 1}: {error}") from None


def reading_lines(problems: dict[str, list[dict]], reads: dict[str, str]) -> list[str]:
    """A line on how the answers of these sets are read, and one for each of the user's own sets
    with labels of another kind. reads: set -> kind of its answers, where its name does not say it.
    """
    sets: dict[str, list[str]] = {}
    lines = []
    for name, rows in problems.items():
        kind = kind_of(reads.get(name, name))
        sets.setdefault(kind_in_words(kind), []).append(name)
        labels = [row["answer"] for row in rows]
        others = [(n, label) for n, label in enumerate(labels, 1) if not fits(kind, label)]
        if others and name in reads:
            named = ", ".join(
                f"{label.strip()[:40] or 'blank'} (problem {n})" for n, label in others[:NAMED]
            )
            more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
            lines.append(
                f"{name}: {len(others)} of {len(rows):,} labels do not fit and are compared as "
                f"texts: {named}{more}"
            )
    if not sets:
        return []
    how = "; ".join(f"as {kind} ({', '.join(names)})" for kind, names in sets.items())
    return [f"answers are read {how}", *lines]


@dataclass(frozen=True)
class HeldOut:
    """The rows of a run, divided."""

    training: list[Example]
    examples: list[Example]  # to measure the loss on
    refused: int  # held-out rows that the template refuses
    lines: list[str]  # notes


def hold_out_share(
    tokenizer: Tokenizer, data: Data, template: Template, s: Settings, examples: list[Example]
) -> HeldOut:
    """The rows that data without answers is measured on: its own held-out rows, or of plain text
    the share s.test_share of the packed rows, which `examples` are."""
    if data.held_out:
        encoded = encode_rows(tokenizer, data.held_out, False, template, s, held_out=True)
        lines = [*held_out_lines(encoded.examples), *encoded.lines]
        return HeldOut(examples, encoded.examples, encoded.refused, lines)
    measured = data.is_text and not data.tests
    count = round(s.test_share * len(examples))
    if not measured or not count:
        too_few = measured and s.test_share > 0
        lines = ["too few rows to hold some out: the loss is not measured"] if too_few else []
        return HeldOut(examples, [], 0, lines)
    training, held_out, _ = hold_out(examples, count, s.seed)
    return HeldOut(training, held_out, 0, held_out_lines(held_out))


def unseen_examples(
    tokenizer: Tokenizer, data: Data, template: Template, s: Settings
) -> list[Example]:
    """The rows that a run with these settings holds out to measure the loss on."""
    text = encode_rows(tokenizer, data.train, True, template, s).examples if data.is_text else []
    return hold_out_share(tokenizer, data, template, s, text).examples


def held_out_lines(rows: list[Example]) -> list[str]:
    line = "held out (test_share), to measure the loss on before and after: "
    return [f"{line}{len(rows):,} of the rows"] if rows else []


def measure_loss(
    model: LanguageModel,
    rows: list[Example],
    s: Settings,
    pad_id: int,
    processes: Processes,
    teacher: Teacher | None = None,
) -> float:
    """Nats per token with a label, with the adapters that are on: cross-entropy, or KL(teacher ||
    model). Raises UserError when out of memory."""
    train = s.train
    fill = train.tokens_per_batch, train.packing
    with short_of_memory(f"on {model.device} while measuring the loss: lower {train.at_once}"):
        loss = mean_loss(model, rows, train.micro_batch_size, pad_id, processes, *fill, teacher)
    model.eval()
    return round(loss, 4)
