"""How fast a training step of a true shape is on this device, how much memory it takes, and what part of the device's matrix product that is."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from adapters import attach, named_parameters
from data.batches import Example, micro_batches
from model.config import describe, skeleton
from model.errors import UserError, short_of_memory
from model.load import load_weights
from model.quantize import quantize_skeleton, quantized
from model.show import size_text
from model.split import device_named
from train.base import DTYPES
from train.dry_run import training_step
from train.fit import measured_rate
from train.pipeline import accumulate
from train.settings import Train

WARM = 2  # steps before the clock starts


def speed_lines(
    name: str, quantize: str, adapter: str, tokens: int, rows: int, checkpointing: str, device: str, dtype: str, repeats: int
) -> Iterator[str]:
    """Lines of text: seconds of a training step (the least of `repeats`), tokens a second, memory measured and planned, share of the measured rate.

    Random weights, made where they lie; one micro-batch of `rows` rows of `tokens` tokens, all labelled, forward, backward, AdamW. Raises UserError.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    here = device_named(device)
    s = Train(batch_size=rows, micro_batch_size=rows, checkpointing=checkpointing, max_steps=WARM + repeats)
    s.check()
    dry = shaped(name, quantize, DTYPES[dtype])
    attach(dry, adapter)
    step = training_step(dry, s, tokens, device=here.type)
    planned, flops = step.phase.peak([0] * len(step.weights))[0], step.phase.flops
    rate = measured_rate(here, DTYPES[dtype])
    stored = dtype if quantize == "none" else f"{dtype} and {quantize}"
    yield f"{name}, random weights, {stored}, {adapter}, {rows} x {tokens} tokens, checkpointing {checkpointing}, on {here}"
    with short_of_memory(f"on {here}: lower --rows or --tokens, or give --checkpointing block or --quantize nf4"):
        model = random_model(name, quantize, DTYPES[dtype], here)
        attach(model, adapter)
        seconds = min(timed_steps(model, s, tokens, repeats))
    peak = torch.cuda.max_memory_allocated(here) if here.type == "cuda" else of_process("VmHWM")
    yield f"  {seconds:.3f} s a step, {rows * tokens / seconds:,.0f} tokens/s"
    where = "allocated" if here.type == "cuda" else "of the process, Python and torch too"
    yield f"  memory: {size_text(peak)} {where}; planned for tensors {size_text(planned)}"
    yield f"  {flops / seconds:.3g} operations a second, {100 * flops / seconds / rate:.0f} % of a plain matrix product's {rate:.3g}"


def shaped(name: str, quantize: str, dtype: torch.dtype) -> nn.Module:
    """The model without memory, its Linears quantised unless that is "none". Raises UserError."""
    family, config, _ = describe(name)
    model = skeleton(family, config).to(dtype)
    model.dtype = dtype
    if quantize != "none":
        quantize_skeleton(model, quantize)
    return model.requires_grad_(False)


def random_model(name: str, quantize: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same with random weights on a device, made and quantised one at a time."""
    shapes = {key: one.shape for key, one in shaped(name, "none", dtype).named_parameters()}
    model = shaped(name, quantize, dtype)
    pairs = ((key, torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)) for key, shape in shapes.items())
    load_weights(model, lambda key: key, pairs, dtype, device, where=name)
    for linear in quantized(model).values():
        linear.dtype = dtype
    return model.requires_grad_(False)


def timed_steps(model: nn.Module, s: Train, tokens: int, repeats: int) -> list[float]:
    """Seconds of each step behind the first few."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (s.batch_size, tokens), generator=generator).tolist()
    batches = dict(enumerate(micro_batches([Example(row, [1.0] * tokens) for row in ids], s.micro_batch_size)))
    parameters = named_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-5)
    model.train()
    model.checkpointing = s.checkpoint_every
    times = []
    for number in range(WARM + repeats):
        if number == WARM and model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        began = time.perf_counter()
        accumulate(model, batches, float(s.batch_size * tokens), 0)
        torch.nn.utils.clip_grad_norm_(parameters.values(), s.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - began)
    return times[WARM:]


def of_process(key: str) -> int:
    """Bytes that this process holds (VmRSS), or has held at most (VmHWM). Raises UserError where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise UserError("the peak of memory is read from /proc, which this system has not")
    return 1024 * int(status.read_text().split(f"{key}:")[1].split()[0])
