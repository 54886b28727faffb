"""Plans against measurements: peaks of memory of real steps and answers, beside the dry run's."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch

from adapters import attach
from benchmarks.machine import held, memory_of_process, peak_of, reset_peak
from benchmarks.process import run_python
from benchmarks.random_weights import named_noise, shaped
from benchmarks.training import random_rows, timed_training
from eval.generate import generate
from files.errors import UserError
from model.config import describe
from model.fsdp import first_pass, shard
from model.language import LanguageModel
from model.load import put
from model.show import parameters, size_text
from train.parallel import Processes, started
from train.plan.dry_run import answer, matrices_of, training_step
from train.settings import Eval, Train

SMALL = 10**8  # bytes; a smaller plan is no measure of itself
LARGE = 500_000_000  # parameters; a larger model is cut to LAYERS blocks of its true width
LAYERS = 2
# glibc returns freed memory at once, so that what is held is what is needed
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
EVAL = Eval(batch_size=8, max_new_tokens=16, decode_memory="plain")
CODE = "import sys; from benchmarks.plan_check import measure; measure(*sys.argv[1:])"


@dataclass(frozen=True)
class Case:
    """A training run of two steps."""

    model: str
    layers: int  # of the model's blocks; 0: all
    dtype: str
    adapter: str
    checkpointing: str
    tokens: int  # of a row and of a prompt
    processes: int

    @property
    def train(self) -> Train:
        return Train(
            max_steps=2,
            batch_size=2 * max(2, self.processes),
            micro_batch_size=2,
            checkpointing=self.checkpointing,
            warmup_steps=0,
            cutoff=self.tokens,
        )

    def skeleton(self) -> LanguageModel:
        """Its model on the meta device."""
        return shaped(self.model, getattr(torch, self.dtype), layers=self.layers)


def plan_lines(model: str, tokens: int, processes: int) -> Iterator[str]:
    """Planned and measured peaks of a step of 2 x 2 rows and of 8 answers, and their ratios.

    Rows and prompts have `tokens` tokens. Several processes share the base (--shard) and have a
    step of 2 rows each. Measured in fresh processes: on a GPU, if there is one, the allocator's
    peak; on the CPU, resident memory above that before the model was made, for a whole model also
    under malloc's defaults. Raises UserError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = f"CPU, {torch.get_num_threads()} threads"
    if device == "cuda":
        where = torch.cuda.get_device_name()
        if processes > 1 and torch.cuda.device_count() < processes:
            raise UserError(
                f"--processes {processes} need as many GPUs, and torch sees "
                f"{torch.cuda.device_count()}; CUDA_VISIBLE_DEVICES= measures on the CPU"
            )
    else:
        memory_of_process("VmHWM")
    layers = 0 if parameters(*describe(model)[:2]) < LARGE else LAYERS
    malloc_too = device == "cpu" and not layers and processes == 1
    yield (
        f"{model}{f', {layers} of its layers' * bool(layers)}; rows of {tokens} tokens, all "
        f"labelled; {where}{f', {processes} processes together' * (processes > 1)}"
    )
    yield (
        f"{'':34}{'step: planned':>15}{'measured':>11}{'ratio':>7}{'answers: planned':>18}"
        f"{'measured':>11}{'ratio':>7}{'malloc as it is' * malloc_too:>20}"
    ).rstrip()
    smallest = SMALL
    for dtype, (adapter, checkpointing) in product(
        ("float32", "bfloat16"), (("lora", "none"), ("parallel", "block"))
    ):
        case = Case(model, layers, dtype, adapter, checkpointing, tokens, processes)
        plan, peak = planned(case, device), measured(case, device, GIVES_BACK)
        line = f"{f'{dtype}, {adapter}, {checkpointing}':34}"
        line += columns(plan["step"], peak["step"], 15)
        line += columns(plan["answers"], peak["answers"], 18)
        if malloc_too:
            step = measured(case, device, {})["step"]
            line += f"{size_text(step):>13}{step / plan['step']:7.3f}"
        smallest = min(smallest, plan["answers"])
        yield line
    if smallest < SMALL:
        yield (
            f"a plan of less than {size_text(SMALL)} is no measure: what torch's kernels take for "
            "themselves is as much; try --model smollm2-135m"
        )


def columns(plan: int, peak: int, width: int) -> str:
    return f"{size_text(plan):>{width}}{size_text(peak):>11}{peak / plan:7.3f}"


def planned(case: Case, device: str) -> dict[str, int]:
    """Bytes at the peak of a step, and while answering."""
    model = case.skeleton()
    attach(model, case.adapter)
    step = training_step(model, case.train, case.tokens, device=device, processes=case.processes)
    phases = {"step": step.phase, "answers": answer(model, EVAL, case.tokens, device)}
    one_device = [0] * (len(model.blocks) + 2)
    peaks = {}
    for name, phase in phases.items():
        if case.processes > 1:
            phase = phase.sharded(matrices_of(model, device), case.processes)
        peaks[name] = phase.peak(one_device)[0]
    return peaks


def measured(case: Case, device: str, environment: dict[str, str]) -> dict[str, int]:
    """The same in a fresh process; the largest of several. Raises UserError when it fails."""
    arguments = json.dumps(asdict(case)), device
    *_, peaks = run_python(CODE, *arguments, processes=case.processes, **environment)
    return peaks


def measure(text: str, device: str) -> None:
    """In a process of its own, or one of several: run the case and print its peaks in bytes."""
    case = Case(**json.loads(text))
    with started() as processes:
        processes = replace(processes, sharded=processes.world > 1)
        # what torch and oneDNN take for themselves, such as a compiled product of each shape
        run(replace(case, layers=1), device, processes)
        before = held(device)
        peaks = {kind: peak - before for kind, peak in run(case, device, processes).items()}
        each = processes.exchange(peaks)
        print(json.dumps({kind: max(one[kind] for one in each) for kind in peaks}), flush=True)
    os._exit(0)  # as run.py's `leave`


def run(case: Case, device: str, processes: Processes) -> dict[str, int]:
    """The peaks of answering and of training, with random weights."""
    model = case.skeleton()
    tied = model.tied
    torch.manual_seed(0)
    if processes.sharded:
        shard(model, processes.mesh(torch.device(device)))
    for name, parameter in list(model.named_parameters()):
        put(model, name, named_noise(name, parameter, device))
    if tied:
        model.tie()
    if processes.sharded:
        first_pass(model)
    attach(model, case.adapter)
    mask = torch.ones(EVAL.batch_size, case.tokens, dtype=torch.long, device=device)
    mask[0, 0] = 0
    ids = torch.randint(3, model.config.vocab_size, mask.shape, device=device)
    reset_peak(device)
    model.decode_memory = EVAL.decode_memory
    generate(model.eval(), ids, mask, EVAL.max_new_tokens)
    answers = peak_of(device)
    reset_peak(device)
    s = case.train
    timed_training(
        model, random_rows(model, s.batch_size * s.max_steps, case.tokens), s, processes=processes
    )
    return {"step": peak_of(device), "answers": answers}
