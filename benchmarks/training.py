"""The training loop on rows of random tokens, and the time of its steps."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adapters import named_parameters
from benchmarks.machine import synchronize
from data.batches import Example
from model.language import LanguageModel
from train.loop import train
from train.parallel import SINGLE, Processes
from train.settings import Train


def random_rows(model: LanguageModel, count: int, tokens: int) -> list[Example]:
    """Rows of random token ids, all labelled."""
    rows = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, model.config.vocab_size, (tokens,), generator=generator)
        rows.append(Example(ids.tolist(), [1.0] * tokens))
    return rows


def timed_training(
    model: LanguageModel,
    rows: Sequence[Example],
    s: Train,
    log: Callable[[dict], None] = lambda entry: None,
    processes: Processes = SINGLE,
) -> tuple[list[dict], list[float]]:
    """(the entries of its log, the seconds of each step but the first), in a temporary folder."""
    entries: list[dict] = []
    ends: list[float] = []

    def note(entry: dict) -> None:
        synchronize(str(model.device))
        ends.append(time.perf_counter())
        entries.append(entry)
        log(entry)

    with TemporaryDirectory() as folder:
        where = Path(processes.exchange(folder)[0])
        trained = named_parameters(model)
        train(model, trained, rows, s, folder=where, log=note, processes=processes)
        processes.barrier()  # before the folder goes
    return entries, [end - begin for begin, end in pairwise(ends)]
