"""Does a model of a true shape go through a whole run on this machine? Random weights, from files on the disk to the saved adapter, stage by stage."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from adapters import attach, named_parameters, save_adapter
from benchmarks.random_weights import random_checkpoint
from benchmarks.step import of_process
from data.batches import Example
from files.errors import UserError
from model import load_model
from model.show import size_text
from train.loop import train
from train.settings import Train

ROOT = Path(__file__).parent.parent


def fits_lines(name: str, quantize: str, adapter: str, tokens: int) -> Iterator[str]:
    """Lines of text as they come: seconds and the peak of memory of each stage - files, load, attach, a training step of one row of so many tokens with
    block checkpointing, save.

    The process that runs them is a fresh one, so that its peak is that of a run; the files lie in the system's temporary folder and are removed.
    Raises UserError when the disk has not the room, or a stage fails.
    """
    of_process("VmHWM")
    with tempfile.TemporaryDirectory() as work:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.fits import stages; stages(*sys.argv[1:])"
        command = [sys.executable, "-c", code, name, quantize, adapter, str(tokens), work]
        done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        yield f"{name}, random weights, {quantize}, {adapter}, one row of {tokens} tokens, {torch.get_num_threads()} threads"
        yield f"{'stage':44}{'seconds':>9}{'peak so far':>13}"
        stage = {"stage": "the start"}
        for line in done.stdout:
            stage = json.loads(line)
            yield f"{stage['stage']:44}{stage['seconds']:9.1f}{size_text(stage['peak']):>13}"
        error = done.stderr.read()
        if done.wait():
            last = (error.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise UserError(
                f"ended behind {stage['stage']!r} with: {last.removeprefix('model.errors.UserError: ')}"
            )


def stages(name: str, quantize: str, adapter: str, tokens: str, work: str) -> None:
    """The stages in this process, each a line of JSON: its name, seconds, and the process's peak so far in bytes."""
    began = time.perf_counter()

    def report(stage: str) -> None:
        nonlocal began
        print(
            json.dumps(
                {
                    "stage": stage,
                    "seconds": time.perf_counter() - began,
                    "peak": of_process("VmHWM"),
                }
            ),
            flush=True,
        )
        began = time.perf_counter()

    folder = Path(work) / "model"
    written = random_checkpoint(name, folder)
    report(f"{size_text(written)} of bfloat16 files written")
    model = load_model(str(folder), quantize=None if quantize == "none" else quantize)
    report(f"loaded, {quantize if model.quantize else 'as it is'}")
    attach(model, adapter)
    parameters = named_parameters(model)
    report(f"{adapter}: {sum(one.numel() for one in parameters.values()):,} parameters")
    generator = torch.Generator().manual_seed(0)
    row = Example(
        torch.randint(3, model.config.vocab_size, (int(tokens),), generator=generator).tolist(),
        [1.0] * int(tokens),
    )
    out = Path(work) / "run"
    out.mkdir()
    s = Train(max_steps=1, batch_size=1, micro_batch_size=1, checkpointing="block", warmup_steps=0)
    entries: list[dict] = []
    train(
        model,
        parameters,
        [row],
        s,
        seed=0,
        pad_id=0,
        folder=out,
        fingerprints={},
        log=entries.append,
    )
    if entries[0]["skipped"]:
        raise UserError(f"the step was skipped, its gradient was not finite: {entries[0]}")
    report("a training step, checkpoint saved")
    save_adapter(model, out / "adapter")
    report("adapter saved")
