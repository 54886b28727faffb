"""The memory of a step or an answer, phase by phase."""

from dataclasses import dataclass, replace

from torch import Tensor

from model.language import LanguageModel
from train.plan.footprint import Footprint


@dataclass(frozen=True)
class Phase:
    """A part of a run: the bytes at its beginning, and what is allocated and freed from then on."""

    begin: list[int]
    events: list[tuple[int, int]]  # (place, bytes; below 0: freed)
    kept: list[int]  # by the forward pass of one micro-batch for its backward pass
    flops: int  # of one micro-batch, or of an answer's first pass

    def peak(self, stage: list[int], batches: int = 1) -> list[int]:
        """The most bytes that each device holds.

        stage: the device of each place. batches: micro-batches of a step, of which stage s of S
        keeps up to S - s (train/pipeline.py).
        """
        now = [0] * (max(stage) + 1)
        for device, size in zip(stage, self.begin, strict=True):
            now[device] += size
        most = list(now)
        for place, size in self.events:
            device = stage[place]
            now[device] += size
            most[device] = max(most[device], now[device])
        for device, kept in zip(stage, self.kept, strict=True):
            most[device] += (min(batches, max(stage) + 1 - device) - 1) * kept
        return most

    def sharded(self, matrices: list[int], processes: int) -> "Phase":
        """The same in one of several processes that share the blocks' matrices (model/fsdp.py).

        WHOLE blocks are gathered while the step is among the blocks, none at its two ends.
        """
        events, before = [], 0
        for place, size in self.events:
            now = gathered(matrices) if 0 < place < len(self.begin) - 1 else 0
            events += [(place, now - before), (place, size)]
            before = now
        return replace(self, begin=own_part(self.begin, matrices, processes), events=events)


@dataclass(frozen=True)
class Step:
    """One training step in the middle of a run."""

    weights: list[int]
    adapter: list[int]
    gradients: list[int]
    optimizer: list[int]
    phase: Phase
    host: int = 0  # bytes in the CPU's memory, with `offload`

    @property
    def static(self) -> list[int]:
        """What is held from step to step."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer)
        return [sum(sizes) for sizes in zip(*parts, strict=True)]

    def sharded(self, matrices: list[int], processes: int) -> "Step":
        """As `Phase.sharded`."""
        weights = own_part(self.weights, matrices, processes)
        return replace(self, weights=weights, phase=self.phase.sharded(matrices, processes))


WHOLE = 3  # blocks that a sharded process has whole: computing, gathered ahead, being copied


def minus(a: list[int], b: list[int]) -> list[int]:
    return [x - y for x, y in zip(a, b, strict=True)]


def own_part(sizes: list[int], matrices: list[int], processes: int) -> list[int]:
    """Sizes of which this process holds its part of the blocks' matrices."""
    return [size - m + -(-m // processes) for size, m in zip(sizes, matrices, strict=True)]


def gathered(matrices: list[int]) -> int:
    """Bytes of the blocks that a sharded process has whole at a time."""
    return WHOLE * max(matrices)


def sizes(model: LanguageModel, tensors: dict[str, Tensor], device: str) -> list[int]:
    """The bytes of these tensors by place; a storage with two names counts once."""
    footprint = Footprint(round_to=ROUNDING[device])
    for name, tensor in tensors.items():
        footprint.see(tensor, 1 + model.place_of(name))
    return footprint.live(len(model.blocks) + 2)


ROUNDING = {"cpu": 1, "cuda": 512}  # bytes: CUDA's caching allocator gives out multiples
