"""What goes through the model at once, and the loss of rows that are not trained on."""

from collections.abc import Sequence

import torch

from data.batches import Batch, Example, batch_of, micro_batches
from model.language import LanguageModel
from train.loss import summed_loss
from train.parallel import SINGLE, Processes
from train.teacher import Teacher


def batch_to_learn(
    model: LanguageModel,
    rows: Sequence[Example],
    pad_id: int,
    packing: bool = False,
    teacher: Teacher | None = None,
) -> Batch:
    """The micro-batch of these rows on the model's device; its targets are the teacher's
    distributions, if there is one."""
    batch = batch_of(rows, pad_id, model.device, packing, model.prompt_length)
    return teacher.taught(batch, rows, pad_id) if teacher else batch


@torch.no_grad()
def mean_loss(
    model: LanguageModel,
    rows: Sequence[Example],
    size: int,
    pad_id: int,
    processes: Processes = SINGLE,
    tokens: int = 0,
    packing: bool = False,
    teacher: Teacher | None = None,
) -> float:
    """The loss per token of these rows, weighted as in training but without dropout.

    size, tokens, packing: what goes through the model at once (data/batches.py); each process
    computes its share. teacher: the loss is KL(teacher || model). Leaves the model in training
    mode.
    """
    model.eval()
    mine = processes.share(dict(enumerate(micro_batches(rows, size, tokens, packing))))
    total = sum(
        summed_loss(model, *batch_to_learn(model, batch, pad_id, packing, teacher)).item()
        for batch in mine.values()
    )
    model.train()
    return sum(processes.gather(total)) / sum(sum(row.weights[1:]) for row in rows)
