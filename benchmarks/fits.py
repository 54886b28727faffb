"""Whether a model of a true shape goes through a whole run on this machine, stage by stage."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adapters import attach, named_parameters, save_adapter
from benchmarks.machine import memory_of_process
from benchmarks.process import run_python
from benchmarks.random_weights import random_checkpoint
from benchmarks.training import random_rows, timed_training
from files.errors import UserError
from model import load_model
from model.show import size_text
from train.settings import Train

CODE = "import sys; from benchmarks.fits import stages; stages(*sys.argv[1:])"


def fits_lines(model: str, quantize: str, adapter: str, tokens: int) -> Iterator[str]:
    """Seconds and peak memory of each stage: files, load, attach, a training step, save.

    The step has one row of `tokens` tokens and block checkpointing. The weights are random. The
    stages run in a fresh process, so that its peak is that of a run; the files lie in the system's
    temporary folder and are removed. Raises UserError when the disk is too small or a stage fails.
    """
    memory_of_process("VmHWM")
    yield (
        f"{model}, random weights, {quantize}, {adapter}, one row of {tokens} tokens, "
        f"{torch.get_num_threads()} threads"
    )
    yield f"{'stage':44}{'seconds':>9}{'peak so far':>13}"
    last = "the start"
    with TemporaryDirectory() as work:
        try:
            for stage in run_python(CODE, model, quantize, adapter, str(tokens), work):
                last, peak = stage["stage"], size_text(stage["peak"])
                yield f"{last:44}{stage['seconds']:9.1f}{peak:>13}"
        except UserError as error:
            raise UserError(f"after {last!r}: {error}") from None


def stages(name: str, quantize: str, adapter: str, tokens: str, work: str) -> None:
    """Run the stages in this process; print for each its name, seconds, and the peak so far."""
    began = time.perf_counter()

    def report(stage: str) -> None:
        nonlocal began
        seconds, peak = time.perf_counter() - began, memory_of_process("VmHWM")
        print(json.dumps({"stage": stage, "seconds": seconds, "peak": peak}), flush=True)
        began = time.perf_counter()

    folder = Path(work) / "model"
    report(f"{size_text(random_checkpoint(name, folder))} of bfloat16 files written")
    model = load_model(str(folder), quantize=None if quantize == "none" else quantize)
    report(f"loaded, {model.quantize or 'as it is'}")
    attach(model, adapter)
    parameters = named_parameters(model)
    report(f"{adapter}: {sum(p.numel() for p in parameters.values()):,} parameters")
    s = Train(max_steps=1, batch_size=1, micro_batch_size=1, checkpointing="block", warmup_steps=0)
    entries, _ = timed_training(model, random_rows(model, 1, int(tokens)), s)
    if entries[0]["skipped"]:
        raise UserError(f"the step was skipped, its gradient was not finite: {entries[0]}")
    report("a training step, checkpoint saved")
    save_adapter(model, Path(work) / "adapter")
    report("adapter saved")
