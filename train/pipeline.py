"""A step through layers that are split over devices (model/devices.py): 1F1B scheduling.

Two stages, four micro-batches, a backward pass twice as long as a forward one (1F1B: Narayanan et
al. 2019, PipeDream; 2021, figure 4):

    cuda:0   F0 F1       B0 B0 F2 B1 B1 F3 B2 B2    B3 B3
    cuda:1      F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3

Each device has its own order of work. Stage s of S keeps the activations of at most S - s
micro-batches. With m micro-batches and S equal stages a device works at most m / (m + S - 1) of the
time. One thread issues all the work: CUDA devices queue it and run at the same time, as long as no
operation waits for its values. Never run on two cards.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from data.batches import Batch, Example, seed_from
from model.language import LanguageModel
from model.parts import Step
from model.placed import moved
from model.rope_scaling import positions_of
from model.tokens import Tokens
from train.loss import loss_of, summed_loss
from train.measure import batch_to_learn
from train.teacher import Teacher


class Work(NamedTuple):
    """One micro-batch forward ("F") or backward ("B") through one stage."""

    stage: int
    batch: int
    way: str

    def needs(self, stages: int) -> "Work | None":
        """The work on another stage, or the forward pass, that must be done before."""
        stage, batch, way = self
        if way == "F":
            return Work(stage - 1, batch, "F") if stage else None
        return Work(stage + 1, batch, "B") if stage < stages - 1 else Work(stage, batch, "F")


def orders(stages: int, batches: int) -> list[list[Work]]:
    """The work of each stage in its order: forward passes to fill the pipeline, then one backward
    and one forward in turn, then the remaining backward passes."""
    all_orders = []
    for stage in range(stages):
        ahead = min(batches, stages - stage)  # forward passes before the first backward one
        order = [Work(stage, batch, "F") for batch in range(ahead)]
        for batch in range(batches):
            order.append(Work(stage, batch, "B"))
            if ahead + batch < batches:
                order.append(Work(stage, ahead + batch, "F"))
        all_orders.append(order)
    return all_orders


def replay(
    schedule: list[list[Work]], seconds: Callable[[Work], float]
) -> dict[Work, tuple[float, float]]:
    """(start, end) of all work if each device starts a piece as soon as what it needs is done."""
    times: dict[Work, tuple[float, float]] = {}
    queues = [list(order) for order in schedule]
    free = [0.0] * len(schedule)  # when each device has finished its work so far
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue and ((need := queue[0].needs(len(schedule))) is None or need in times):
                work = queue.pop(0)
                start = max(free[stage], times[need][1] if need else 0.0)
                free[stage] = start + seconds(work)
                times[work] = (start, free[stage])
    return times


def utilisation(schedule: list[list[Work]], seconds: Callable[[Work], float]) -> float:
    """The share of the step that a device is busy, the mean of all devices."""
    times = replay(schedule, seconds).values()
    busy = sum(end - start for start, end in times)
    whole = max(end for _, end in times)
    return busy / (len(schedule) * whole) if whole else 1.0


class Busy(NamedTuple):
    """The share of a step that a device works, the mean of all devices."""

    measured: float  # seconds of work over seconds of the step
    side_by_side: float  # of the same work if devices never waited for the issuing thread


def busy_text(steps: Sequence[Busy], stages: int, batches: int, at_once: str) -> str:
    """The mean measured utilisation of a run, beside what the schedule allows.

    at_once: the setting that makes more micro-batches.
    """
    measured, side_by_side = (100 * sum(each) / len(steps) for each in zip(*steps, strict=True))
    most = batches / (batches + stages - 1)
    hint = f"; a lower {at_once} gives them more to do side by side" * (most < 0.7)
    return (
        f"{stages} devices, micro-batches a step: {batches}; busy {measured:.0f}% of the time, "
        f"{side_by_side:.0f}% if all work side by side as scheduled, where equal stages would be "
        f"{100 * most:.0f}%{hint}"
    )


@dataclass
class Passage:
    """A micro-batch between stages: each stage has an autograd graph of its own, whose input and
    output are kept here until its backward pass."""

    batch: Batch
    tokens: Tokens | None = None
    step: Step | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)  # by stage
    outputs: dict[int, Tensor] = field(default_factory=dict)


class Timer:
    """How long each piece of work took on its own device; CUDA devices are timed by events."""

    def __init__(self):
        self.marks: dict[Work, list] = {}

    def mark(self, work: Work, device: torch.device) -> None:
        """The first call for a piece of work is its start, the second its end."""
        if device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record(torch.cuda.current_stream(device))
        else:
            now = time.perf_counter()
        self.marks.setdefault(work, []).append(now)

    def seconds(self, work: Work) -> float:
        """Waits for a CUDA device to finish the work."""
        start, end = self.marks[work]
        if isinstance(start, float):
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


def accumulate(
    model: LanguageModel,
    batches: dict[int, Sequence[Example]],
    divisor: float,
    pad_id: int,
    packing: bool = False,
    teacher: Teacher | None = None,
) -> tuple[list[Tensor], Busy | None]:
    """Add the gradient of (summed loss / divisor) of every micro-batch to the parameters.

    batches: micro-batches by the seed of their dropout. packing: leave out their pads
    (model/packing.py). teacher: whose distributions are learned, not the rows' tokens. Returns the
    summed loss of each, and how busy the devices were (None: the model is on one device).
    """
    on_device = [batch_to_learn(model, rows, pad_id, packing, teacher) for rows in batches.values()]
    if model.stages and batches:
        return pipelined(model, on_device, list(batches), divisor)
    losses = []
    for seed, batch in zip(batches, on_device, strict=True):
        torch.manual_seed(seed)
        loss = summed_loss(model, *batch)
        (loss / divisor).backward()
        losses.append(loss.detach())
    return losses, None


def pipelined(
    model: LanguageModel, batches: Sequence[Batch], seeds: Sequence[int], divisor: float
) -> tuple[list[Tensor], Busy]:
    """`accumulate` with the model's stages at work at the same time, each piece timed."""
    last = len(model.stages) - 1
    schedule = orders(len(model.stages), len(batches))
    passages = [Passage(batch) for batch in batches]
    losses: dict[int, Tensor] = {}
    timer = Timer()
    began = time.perf_counter()

    def forward(work: Work) -> None:
        stage, passage = model.stages[work.stage], passages[work.batch]
        torch.manual_seed(seed_from(seeds[work.batch], work.stage))
        if work.stage == 0:
            timer.mark(work, stage.device)
            ids, _, lengths, labels = passage.batch
            positions = positions_of(model, ids, lengths)
            tokens = model.tokens(ids, None, positions, None, labels.packing, labels.prompts)
            passage.tokens = tokens
            passage.step = model.step(tokens, None)
            x = passage.step.tokens(model.embed(tokens))
        else:
            before = passage.outputs[work.stage - 1]
            x = moved(before.detach(), stage.device).requires_grad_(before.requires_grad)
            passage.inputs[work.stage] = x
            timer.mark(work, stage.device)
        for block in model.blocks[stage.first : stage.end]:
            x = model.run(block, x, passage.step)
        if work.stage == last:
            x = model.real_tokens(model.final(x), passage.tokens, None)
            x = loss_of(model, x, passage.batch.labels)
            losses[work.batch] = x.detach()
            x = x / divisor
        passage.outputs[work.stage] = x
        timer.mark(work, stage.device)

    def backward(work: Work) -> None:
        stage, passage = model.stages[work.stage], passages[work.batch]
        output = passage.outputs.pop(work.stage)
        gradient = None
        if work.stage < last and (gradient := passage.inputs.pop(work.stage + 1).grad) is not None:
            gradient = moved(gradient, output.device)
        timer.mark(work, stage.device)
        if output.requires_grad:
            output.backward(gradient)
        timer.mark(work, stage.device)
        if work.stage == 0:
            passages[work.batch] = None  # its memory is free

    times = replay(schedule, lambda work: 1.0 if work.way == "F" else 2.0)
    # of work that can start at the same time a CPU's comes last, as it blocks this thread
    on_cpu = [stage.device.type == "cpu" for stage in model.stages]
    for work in sorted(times, key=lambda work: (times[work][0], on_cpu[work.stage])):
        (forward if work.way == "F" else backward)(work)
    seconds = sum(map(timer.seconds, times))  # waits for all devices
    measured = seconds / (len(schedule) * (time.perf_counter() - began))
    return list(map(losses.get, range(len(batches)))), Busy(
        measured, utilisation(schedule, timer.seconds)
    )
