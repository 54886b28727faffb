"""The loss on rows that a run holds out, before and after: what is measured where data has no
answers."""

from torch import nn

from data.batches import Example
from data.prompts import Template
from data.sources import Data
from model.errors import short_of_memory
from train.loss import mean_loss
from train.parallel import Processes
from train.rows import encode_rows, hold_out
from train.settings import Settings


def held_out_examples(
    tokenizer, data: Data, form: Template, s: Settings, examples: list[Example]
) -> tuple[list[Example], list[Example]]:
    """(rows to train on, rows to measure the loss on) of data without answers.

    The data's own held-out rows, or of plain text the share s.test_share of the packed rows, which
    `examples` are.
    """
    if data.held_out:
        return examples, encode_rows(tokenizer, data.held_out, False, form, s).examples
    count = round(s.test_share * len(examples))
    if not data.is_text or data.tests or not count:
        return examples, []
    training, held_out, _ = hold_out(examples, count, s.seed)
    return training, held_out


def unseen_examples(tokenizer, data: Data, form: Template, s: Settings) -> list[Example]:
    """The rows that a run with these settings holds out to measure the loss on."""
    text = encode_rows(tokenizer, data.train, True, form, s).examples if data.is_text else []
    return held_out_examples(tokenizer, data, form, s, text)[1]


def held_out_lines(rows: list[Example]) -> list[str]:
    if not rows:
        return []
    return [f"{len(rows):,} rows are held out (test_share): the loss on them is measured before and after"]


def measure_loss(
    model: nn.Module, rows: list[Example], s: Settings, pad_id: int, processes: Processes
) -> float:
    """Nats per token with a label of held-out rows, with the adapters that are on.

    Raises UserError where memory runs out.
    """
    with short_of_memory(
        f"on {model.device} while measuring the loss: lower train.micro_batch_size"
    ):
        loss = mean_loss(model, rows, s.train.micro_batch_size, pad_id, processes)
    model.eval()
    return round(loss, 4)


def loss_text(loss: dict) -> str:
    """The held-out loss of a run in words."""
    return (
        f"loss per token on {loss['rows']:,} held-out rows: {loss['before']:.4f} before, "
        f"{loss['after']:.4f} after"
    )
