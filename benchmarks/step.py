"""How fast a training step of a true shape is on this device, how much memory it takes, and what part of the device's matrix product that is."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from adapters import attach, named_parameters
from benchmarks.random_weights import random_model, shaped
from data.batches import Example
from experiments.base import DTYPES
from files.errors import UserError, short_of_memory
from model.devices import device_named
from model.show import size_text
from train.loop import train
from train.plan.advice import measured_rate
from train.plan.dry_run import training_step
from train.settings import Train

WARM = 2  # steps before the clock starts


def speed_lines(
    name: str,
    quantize: str,
    adapter: str,
    tokens: int,
    rows: int,
    checkpointing: str,
    device: str,
    dtype: str,
    repeats: int,
) -> Iterator[str]:
    """Lines of text: seconds of a training step (the least of `repeats`), tokens a second, memory measured and planned, share of the measured rate.

    Random weights, made where they lie; one micro-batch of `rows` rows of `tokens` tokens, all labelled, forward, backward, AdamW. Raises UserError.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    here = device_named(device)
    s = Train(
        batch_size=rows,
        micro_batch_size=rows,
        checkpointing=checkpointing,
        max_steps=WARM + repeats,
        learning_rate=1e-5,
        save_every=WARM + repeats,
    )
    s.check()
    how = "" if quantize == "none" else quantize
    dry = shaped(name, DTYPES[dtype], how)
    attach(dry, adapter)
    step = training_step(dry, s, tokens, device=here.type)
    planned, flops = step.phase.peak([0] * len(step.weights))[0], step.phase.flops
    rate = measured_rate(here, DTYPES[dtype])
    stored = f"{dtype} and {how}" if how else dtype
    yield f"{name}, random weights, {stored}, {adapter}, {rows} x {tokens} tokens, checkpointing {checkpointing}, on {here}"
    with short_of_memory(
        f"on {here}: lower --rows or --tokens, or give --checkpointing block or --quantize nf4"
    ):
        model = random_model(name, DTYPES[dtype], how, here)
        attach(model, adapter)
        seconds = min(timed_steps(model, s, tokens))
    peak = torch.cuda.max_memory_allocated(here) if here.type == "cuda" else of_process("VmHWM")
    yield f"  {seconds:.3f} s a step, {rows * tokens / seconds:,.0f} tokens/s"
    where = "allocated" if here.type == "cuda" else "of the process, Python and torch too"
    yield f"  memory: {size_text(peak)} {where}; planned for tensors {size_text(planned)}"
    yield f"  {flops / seconds:.3g} operations a second, {100 * flops / seconds / rate:.0f} % of a plain matrix product's {rate:.3g}"


def timed_steps(model: nn.Module, s: Train, tokens: int) -> list[float]:
    """Seconds of each step of the training loop behind the first few."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        3, model.config.vocab_size, (s.batch_size, tokens), generator=generator
    ).tolist()
    ends: list[float] = []

    def end(_: dict) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
            if len(ends) < WARM:
                torch.cuda.reset_peak_memory_stats(model.device)
        ends.append(time.perf_counter())

    with TemporaryDirectory() as work:
        rows = [Example(row, [1.0] * tokens) for row in ids]
        train(
            model,
            named_parameters(model),
            rows,
            s,
            seed=0,
            pad_id=0,
            folder=Path(work),
            fingerprints={},
            log=end,
        )
    return [end - begin for begin, end in pairwise(ends[WARM - 1 :])]


def of_process(key: str) -> int:
    """Bytes that this process holds (VmRSS), or has held at most (VmHWM). Raises UserError where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise UserError("the peak of memory is read from /proc, which this system has not")
    return 1024 * int(status.read_text().split(f"{key}:")[1].split()[0])
