"""The loss on held-out rows, before and after: what is measured where data has no answers."""

from dataclasses import dataclass

from data.batches import Example
from data.prompts import Template
from data.sources import Data
from experiments.rows import encode_rows, hold_out
from files.errors import short_of_memory
from model.language import LanguageModel
from model.tokenizer import Tokenizer
from train.measure import mean_loss
from train.parallel import Processes
from train.settings import Settings
from train.teacher import Teacher


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
