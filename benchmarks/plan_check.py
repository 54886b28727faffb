"""Plans against measurements: the peak of memory of real training steps and answers, beside what train/plan/dry_run.py counts for them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from adapters import attach, named_parameters
from benchmarks.random_weights import noise, shaped
from benchmarks.step import of_process
from data.batches import Example
from eval.generate import generate
from files.errors import UserError
from model.config import describe
from model.fsdp import first_pass, shard
from model.load import put
from model.show import parameters, size_text
from train.loop import train
from train.parallel import Processes, started
from train.plan.dry_run import answer, matrices_of, training_step
from train.settings import Eval, Train

ROOT = Path(__file__).parent.parent
SMALL = 10**8  # bytes
LARGE = 500_000_000  # parameters from which on a model is cut to LAYERS, at its true width
LAYERS = 2
GIVES_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}  # glibc returns memory at once: what is held is what is needed
EVAL = Eval(batch_size=8, max_new_tokens=16)


def plan_lines(name: str, tokens: int, processes: int) -> Iterator[str]:
    """Lines as they come: planned and measured peaks of a step of 2 x 2 rows and of 8 answers, rows and prompts of so many tokens; of several processes,
    which hold the base together (--shard), a step of 2 rows in each.

    Each is measured in a fresh process, on a GPU where there is one (its allocator's peak), else on the CPU (the peak of resident memory above that
    before the model was made; of a whole model also under malloc's defaults). Raises UserError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        of_process("VmHWM")
    if processes > 1 and device == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(
            f"--processes {processes} need as many GPUs, and torch sees {torch.cuda.device_count()}; CUDA_VISIBLE_DEVICES= measures on the CPU"
        )
    layers = 0 if parameters(*describe(name)[:2]) < LARGE else LAYERS
    where = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    where += f", {processes} processes together" * (processes > 1)
    yield f"{name}{f', {layers} of its layers' * bool(layers)}; rows of {tokens} tokens, all labelled; {where}"
    also = device == "cpu" and not layers and processes == 1
    more = f"{'malloc as it is':>20}" * also
    yield f"{'':34}{'step: planned':>15}{'measured':>11}{'ratio':>7}{'answers: planned':>18}{'measured':>11}{'ratio':>7}{more}"
    smallest = SMALL
    for dtype, (adapter, checkpointing) in product(
        ("float32", "bfloat16"), (("lora", "none"), ("parallel", "block"))
    ):
        case = {
            "name": name,
            "layers": layers,
            "dtype": dtype,
            "adapter": adapter,
            "checkpointing": checkpointing,
            "tokens": tokens,
            "processes": processes,
        }
        step, answers = planned(case, device)
        smallest = min(smallest, answers)
        found = measured(case, device, GIVES_BACK)
        line = f"{f'{dtype}, {adapter}, {checkpointing}':34}"
        for planned_bytes, peak, width in (
            (step, found["step"], 15),
            (answers, found["answers"], 18),
        ):
            line += f"{size_text(planned_bytes):>{width}}{size_text(peak):>11}{peak / planned_bytes:7.3f}"
        if also:
            peak = measured(case, device, {})["step"]
            line += f"{size_text(peak):>13}{peak / step:7.3f}"
        yield line
    if smallest < SMALL:
        yield f"a plan of less than {size_text(SMALL)} is no measure: what torch's kernels take for themselves is as much; try --model smollm2-135m"


def settings_of(case: dict) -> Train:
    rows = 2 * max(2, case["processes"])
    return Train(
        max_steps=2,
        batch_size=rows,
        micro_batch_size=2,
        checkpointing=case["checkpointing"],
        warmup_steps=0,
        cutoff=case["tokens"],
    )


def bare(case: dict) -> nn.Module:
    """The model of a case without memory."""
    return shaped(case["name"], getattr(torch, case["dtype"]), layers=case["layers"])


def planned(case: dict, device: str) -> tuple[int, int]:
    """Bytes at the peak of a step, and while answering."""
    model = bare(case)
    attach(model, case["adapter"])
    stage, many = [0] * (len(model.blocks) + 2), case["processes"]
    phases = (
        training_step(
            model, settings_of(case), case["tokens"], device=device, processes=many
        ).phase,
        answer(model, EVAL, case["tokens"], device),
    )
    if many > 1:
        matrices = matrices_of(model, device)
        phases = tuple(one.sharded(matrices, many) for one in phases)
    return tuple(one.peak(stage)[0] for one in phases)


def measured(case: dict, device: str, environment: dict[str, str]) -> dict[str, int]:
    """The same as a fresh process has it; of several, the one that has most. Raises UserError when it fails."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.plan_check import measure; measure(*sys.argv[1:])"
    command = [sys.executable, "-c", code, json.dumps(case), device]
    if case["processes"] > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(case["processes"]),
            "--no-python",
            *command,
        ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise UserError(
            f"the measurement ended with: {(done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]:.300}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(case: str, device: str) -> None:
    """In a process of its own, or in each of several: make the model, answer, train, and print the peaks in bytes."""
    case = json.loads(case)
    with started() as processes:
        processes = replace(processes, sharded=processes.world > 1)
        run(
            dict(case, name="pocket-llama", layers=0, tokens=16), device, processes
        )  # what torch allocates once for itself
        before = held(device)
        peaks = processes.exchange(
            {kind: peak - before for kind, peak in run(case, device, processes).items()}
        )
        print(json.dumps({kind: max(one[kind] for one in peaks) for kind in peaks[0]}), flush=True)
    os._exit(0)  # as run.py's `leave`


def run(case: dict, device: str, processes: Processes) -> dict[str, int]:
    """The peaks of answering and of training, with random weights."""
    model = bare(case)
    tied = model.tied
    torch.manual_seed(0)
    if processes.sharded:
        shard(model, processes.mesh(torch.device(device)))
    for name, parameter in list(model.named_parameters()):
        put(model, name, noise(parameter, device))
    if tied:
        model.tie()
    if processes.sharded:
        first_pass(model)
    attach(model, case["adapter"])
    vocab, tokens = model.config.vocab_size, case["tokens"]
    mask = torch.ones(EVAL.batch_size, tokens, dtype=torch.long, device=device)
    mask[0, 0] = 0
    forget_peak(device)
    generate(
        model.eval(), torch.randint(3, vocab, mask.shape, device=device), mask, EVAL.max_new_tokens
    )
    answers = peak_of(device)
    forget_peak(device)
    s = settings_of(case)
    rows = [
        Example(torch.randint(3, vocab, (tokens,)).tolist(), [1.0] * tokens)
        for _ in range(s.batch_size * s.max_steps)
    ]
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            named_parameters(model),
            rows,
            s,
            seed=0,
            pad_id=0,
            folder=Path(folder),
            fingerprints={},
            processes=processes,
        )
    return {"step": peak_of(device), "answers": answers}


def held(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else of_process("VmRSS")


def peak_of(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else of_process("VmHWM")


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is held now
