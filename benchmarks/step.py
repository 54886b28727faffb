"""A training step of a true shape on this device: time, memory, and share of the peak FLOPs."""

from collections.abc import Iterator

from adapters import attach
from benchmarks.machine import peak_of, reserved, reset_peak
from benchmarks.random_weights import random_model, shaped
from benchmarks.training import random_rows, timed_training
from experiments.base import DTYPES
from files.errors import UserError, short_of_memory
from files.typed import from_table
from model.devices import device_named
from model.language import LanguageModel
from model.show import size_text
from train.plan.advice import measured_rate
from train.plan.dry_run import training_step
from train.settings import Train

WARM = 2  # steps before the clock starts


def step_lines(
    model: str,
    quantize: str,
    adapter: str,
    tokens: int,
    rows: int,
    checkpointing: str,
    device: str,
    dtype: str,
    repeats: int,
) -> Iterator[str]:
    """Seconds of a training step, tokens per second, measured and planned memory, FLOPs.

    Random weights; one micro-batch of `rows` rows of `tokens` tokens, all labelled; forward,
    backward, AdamW. The least of `repeats` steps counts. Raises UserError.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    here = device_named(device)
    table = {
        "batch_size": rows,
        "micro_batch_size": rows,
        "checkpointing": checkpointing,
        "max_steps": WARM + repeats,
        "learning_rate": 1e-5,
        "save_every": WARM + repeats,
    }
    s = from_table(Train, table, "the command line")
    stored = "" if quantize == "none" else quantize
    dry = shaped(model, DTYPES[dtype], stored)
    attach(dry, adapter)
    step = training_step(dry, s, tokens, device=here.type)
    planned, flops = step.phase.peak([0] * len(step.weights))[0], step.phase.flops
    rate = measured_rate(here, DTYPES[dtype])
    yield (
        f"{model}, random weights, {f'{dtype} and {stored}' if stored else dtype}, {adapter}, "
        f"{rows} x {tokens} tokens, checkpointing {checkpointing}, on {here}"
    )
    with short_of_memory(
        f"on {here}: lower --rows or --tokens, or give --checkpointing block or --quantize nf4"
    ):
        real = random_model(model, DTYPES[dtype], stored, here)
        attach(real, adapter)
        seconds = min(timed_steps(real, s, tokens))
    of_what = "of the process, Python and torch too"
    if here.type == "cuda":
        of_what = f"allocated, {size_text(reserved(device))} reserved"
    yield f"  {seconds:.3f} s a step, {rows * tokens / seconds:,.0f} tokens/s"
    peak = f"{size_text(peak_of(device))} {of_what}"
    yield f"  memory: {peak}; planned for tensors {size_text(planned)}"
    share = 100 * flops / seconds / rate
    yield (
        f"  {flops / seconds:.3g} operations a second, {share:.0f}% of a plain matrix product's "
        f"{rate:.3g}"
    )


def timed_steps(model: LanguageModel, s: Train, tokens: int) -> list[float]:
    """Seconds of each step of the training loop after the first few."""

    def reset(entry: dict) -> None:
        if model.device.type == "cuda" and entry["step"] <= WARM:
            reset_peak(str(model.device))

    rows = random_rows(model, s.batch_size, tokens)
    return timed_training(model, rows, s, reset)[1][WARM - 1 :]
