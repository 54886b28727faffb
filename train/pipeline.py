"""A step through layers split over devices (model/devices.py): micro-batches follow each other so that every device has work.

Two stages, four micro-batches, a backward pass twice as long as a forward one (1F1B: Narayanan et al. 2019, PipeDream; 2021, figure 4):

    cuda:0   F0 F1       B0 B0 F2 B1 B1 F3 B2 B2    B3 B3
    cuda:1      F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3

Each device has its own order of work; a stage keeps at most as many micro-batches' activations as there are stages from it to the last. With m micro-batches
and s equal stages a device works m / (m + s - 1) of the time. One thread hands out all the work: CUDA devices queue it and run side by side.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.batches import Example, collate, seed_from
from model.parts import moved
from train.loss import loss_of, positions_of, summed_loss


class Work(NamedTuple):
    """One micro-batch forward ("F") or backward ("B") through one stage."""

    stage: int
    batch: int
    way: str

    def needs(self, stages: int) -> "Work | None":
        """What must be done before it, besides what its own device has in front of it."""
        if self.way == "F":
            return Work(self.stage - 1, self.batch, "F") if self.stage else None
        return (
            Work(self.stage + 1, self.batch, "B")
            if self.stage < stages - 1
            else Work(self.stage, self.batch, "F")
        )


def orders(stages: int, batches: int) -> list[list[Work]]:
    """The work of each stage, in its order: some forward passes to fill the pipeline, then one forward one backward, then the rest backward."""
    found = []
    for stage in range(stages):
        ahead = min(batches, stages - stage)  # forward passes before the first backward one
        order = [Work(stage, batch, "F") for batch in range(ahead)]
        for batch in range(batches):
            order.append(Work(stage, batch, "B"))
            if ahead + batch < batches:
                order.append(Work(stage, ahead + batch, "F"))
        found.append(order)
    return found


def replay(
    work: list[list[Work]], seconds: Callable[[Work], float]
) -> dict[Work, tuple[float, float]]:
    """(start, end) of everything when each device does its work in its order as soon as what it needs is there."""
    times: dict[Work, tuple[float, float]] = {}
    queues = [list(order) for order in work]
    while any(queues):
        for queue in queues:
            while queue and ((needed := queue[0].needs(len(work))) is None or needed in times):
                one = queue.pop(0)
                before = [
                    times[other][1]
                    for other in (needed, *work[one.stage][: work[one.stage].index(one)][-1:])
                    if other is not None
                ]
                start = max(before, default=0.0)
                times[one] = (start, start + seconds(one))
    return times


def utilisation(work: list[list[Work]], seconds: Callable[[Work], float]) -> float:
    """The share of the time from the first to the last piece of work that a device is busy, the mean of all devices."""
    times = replay(work, seconds)
    busy = sum(end - start for start, end in times.values())
    whole = max(end for _, end in times.values())
    return busy / (len(work) * whole) if whole else 1.0


class Busy(NamedTuple):
    """The share of a step that a device works, the mean of all devices."""

    measured: float  # seconds of work over seconds of the step
    side_by_side: float  # the same pieces of work laid out as the schedule has them: what devices that never wait for this thread would come to


def busy_text(steps: Sequence[Busy], stages: int, batches: int) -> str:
    """What was measured, beside what the schedule allows."""
    measured, side_by_side = (100 * sum(each) / len(steps) for each in zip(*steps, strict=True))
    most = batches / (batches + stages - 1)
    hint = (
        "; a lower train.micro_batch_size gives them more to do side by side" if most < 0.7 else ""
    )
    return (
        f"{stages} devices, micro-batches a step: {batches}; busy {measured:.0f} % of the time, {side_by_side:.0f} % if all work side by side "
        f"as scheduled, where equal stages would be {100 * most:.0f} %{hint}"
    )


@dataclass
class Passage:
    """A micro-batch on its way: what went into each stage and came out of it, cut apart so that each stage has a graph of its own."""

    ids: Tensor
    weights: Tensor
    lengths: Tensor
    prompt: int = 0  # virtual tokens in front
    step: object = None
    into: dict[int, Tensor] = field(default_factory=dict)
    out: dict[int, Tensor] = field(default_factory=dict)


class Watch:
    """How long each piece of work took on its own device: CUDA devices are asked by events, behind the step."""

    def __init__(self):
        self.marks: dict[Work, list] = {}

    def mark(self, one: Work, device: torch.device) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            self.marks.setdefault(one, []).append(event)
        else:
            self.marks.setdefault(one, []).append(time.perf_counter())

    def seconds(self, one: Work) -> float:
        start, end = self.marks[one]
        if isinstance(start, float):
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


def accumulate(
    model: nn.Module, batches: dict[int, Sequence[Example]], divisor: float, pad_id: int
) -> tuple[list[Tensor], Busy | None]:
    """Add the gradient of summed loss / divisor of every micro-batch to the parameters. batches: by the seed of their dropout.

    Returns the summed loss of each micro-batch, and how busy the devices were (None: there is one).
    """
    if model.stages and batches:
        return pipelined(model, list(batches.values()), list(batches), divisor, pad_id)
    losses = []
    for seed, rows in batches.items():
        torch.manual_seed(seed)
        loss = summed_loss(model, *collate(rows, pad_id, model.device))
        (loss / divisor).backward()
        losses.append(loss.detach())
    return losses, None


def pipelined(
    model: nn.Module,
    batches: Sequence[Sequence[Example]],
    seeds: Sequence[int],
    divisor: float,
    pad_id: int,
) -> tuple[list[Tensor], Busy]:
    """`accumulate` with the model's stages working side by side, each piece of work timed on its device."""
    last = len(model.stages) - 1
    work = orders(len(model.stages), len(batches))
    passages = {
        number: Passage(*collate(rows, pad_id, model.device)) for number, rows in enumerate(batches)
    }  # copies to a GPU wait for its queue
    losses: dict[int, Tensor] = {}
    watch = Watch()
    began = time.perf_counter()

    def forward(one: Work) -> None:
        stage = model.stages[one.stage]
        passage = passages[one.batch]
        torch.manual_seed(seed_from(seeds[one.batch], one.stage))
        if one.stage == 0:
            watch.mark(one, stage.device)
            positions = positions_of(model, passage.ids, passage.lengths)
            tokens = model.tokens(passage.ids, None, positions, None)
            passage.prompt = tokens.prompt
            x, passage.step = model.embed(tokens), model.step(tokens, None)
        else:
            before = passage.out[one.stage - 1]
            x = passage.into[one.stage] = moved(before.detach(), stage.device).requires_grad_(
                before.requires_grad
            )
            watch.mark(one, stage.device)
        for block in model.blocks[stage.first : stage.end]:
            x = model.run(block, x, passage.step)
        if one.stage == last:
            x = loss_of(model, model.final(x)[:, passage.prompt :], passage.ids, passage.weights)
            losses[one.batch] = x.detach()
            x = x / divisor
        passage.out[one.stage] = x
        watch.mark(one, stage.device)

    def backward(one: Work) -> None:
        stage, passage = model.stages[one.stage], passages[one.batch]
        out = passage.out.pop(one.stage)
        gradient = None if one.stage == last else passage.into.pop(one.stage + 1).grad
        if gradient is not None:
            gradient = moved(gradient, out.device)
        watch.mark(one, stage.device)
        if out.requires_grad:
            out.backward(gradient)
        watch.mark(one, stage.device)
        if one.stage == 0:
            del passages[one.batch]

    times = replay(work, lambda one: 1.0 if one.way == "F" else 2.0)
    for one in sorted(
        times, key=lambda one: (times[one][0], model.stages[one.stage].device.type == "cpu")
    ):  # a CPU's work holds this thread up
        (forward if one.way == "F" else backward)(one)
    seconds = sum(watch.seconds(one) for one in times)  # waits for the last
    return [losses[batch] for batch in range(len(batches))], Busy(
        seconds / (len(work) * (time.perf_counter() - began)), utilisation(work, watch.seconds)
    )
