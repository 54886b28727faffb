"""A training step and an answer on torch's meta device: memory by place, and FLOPs.

Places of a model: 0 is the embedding, 1 ... L are the blocks, L + 1 is the last norm, the head and
the loss. Lists of this file are bytes by place.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.in_use import after_step, named_parameters, penalty
from data.batches import Labels
from eval.prefill import rows_of_pass
from model.language import LanguageModel
from model.packing import Packing
from model.parts import CHUNK
from model.sites import base_parameters
from train.loss import summed_loss
from train.optim import adamw
from train.plan.footprint import Footprint, kernels_of, sum_dry, watch
from train.settings import Eval, Train

WHOLE = 3  # blocks that a sharded process has whole: computing, gathered ahead, being copied
ROUNDING = {"cpu": 1, "cuda": 512}  # bytes: CUDA's caching allocator gives out multiples


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


@contextmanager
def counting(model: LanguageModel, device: str) -> Iterator[Footprint]:
    """A footprint that has counted the model's tensors already."""
    footprint = Footprint(ROUNDING[device])
    for name, tensor in all_tensors(model).items():
        footprint.see(tensor, 1 + model.place_of(name))
    with kernels_of(device), watch(model, footprint), footprint:
        yield footprint
    footprint.alive.clear()  # do not record what is freed later


def matrices_of(model: LanguageModel, device: str) -> list[int]:
    """Bytes of the blocks' matrices: what `shard` spreads over processes (model/fsdp.py)."""
    blocks = f"{model.blocks_at}."
    base = base_parameters(model).items()
    matrices = {name: p for name, p in base if name.startswith(blocks) and p.dim() > 1}
    return sizes(model, matrices, device)


def all_tensors(model: LanguageModel) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def training_step(
    model: LanguageModel,
    s: Train,
    length: int,
    share: float = 1.0,
    device: str = "cpu",
    processes: int = 1,
) -> Step:
    """The step of train/loop.py with as many rows of `length` tokens as are in the model at once.

    share: of the tokens that have a label. device: cpu or cuda, whose kernels are counted. The
    model may also be on a real device: the same is counted (tests).
    """
    at = next(model.parameters()).device
    trained = named_parameters(model)
    places = len(model.blocks) + 2
    optimizer = adamw(trained, s, {})
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
        optimizer.state_of(parameter)  # its moments exist, as after the first step
    rows = s.rows_at_once(length)
    if s.batch_size <= processes * rows:
        model.zero_grad(set_to_none=True)  # else the gradients of earlier micro-batches exist
    model.train()
    model.checkpointing = s.checkpoint_every
    stay = {tensor.untyped_storage()._cdata for tensor in all_tensors(model).values()}
    with counting(model, device) as footprint:
        static = footprint.live(places)
        for name, parameter in trained.items():
            for moment in optimizer.state_of(parameter).values():
                footprint.see(moment, 1 + model.place_of(name))
        moments = minus(footprint.live(places), static)
        for name, parameter in trained.items():
            if parameter.grad is not None:
                footprint.see(parameter.grad, 1 + model.place_of(name))
        begin, first = footprint.live(places), len(footprint.events)
        ids = torch.zeros(rows, length, dtype=torch.long, device=at)
        weights = torch.ones(rows, length, device=at)
        labels = labels_of_share(model, ids, share, s.packing)
        before = footprint.live(places)
        with footprint.offloaded(stay) if s.offload else nullcontext():
            loss = summed_loss(model, ids, weights, labels=labels) / rows
            kept = minus(footprint.live(places), before)
            loss.backward()
        del loss
        flops = footprint.flops
        if processes > 1:
            sum_dry(list(trained.values()))
        if (extra := penalty(model)) is not None:
            extra.backward()
        gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
        gradients = sizes(model, gradients, device)
        torch.nn.utils.clip_grad_norm_(trained.values(), s.clip)
        optimizer.step()
        after_step(model, 1, s.max_steps or 1000)
        model.zero_grad(set_to_none=True)
    model.checkpointing = 0
    adapter = {name: t for name, t in all_tensors(model).items() if ".adapters." in name}
    adapter = sizes(model, adapter, device)
    phase = Phase(begin, footprint.events[first:], kept, flops)
    return Step(minus(static, adapter), adapter, gradients, moments, phase, footprint.host)


def labels_of_share(model: LanguageModel, ids: Tensor, share: float, packing: bool) -> Labels:
    """Labels at the first tokens of full rows [B, T], a share of all; they are packed all the
    same, as in most micro-batches some row is shorter."""
    rows, length = ids.shape
    places = torch.arange(round(share * rows * (length - 1)), device=ids.device)
    whole = length + model.prompt_length
    tokens = torch.arange(rows * whole, device=ids.device)
    packed = Packing(tokens, rows, whole, places) if packing else None
    return Labels(places, torch.zeros_like(places), places.new_ones(len(places)).float(), packed)


@torch.no_grad()  # not inference_mode, under which torch dispatches composite operations
def answer(model: LanguageModel, s: Eval, prompt: int, device: str = "cpu") -> Phase:
    """The first pass over prompts of `prompt` tokens, and the last new token of `batch_size` rows.

    As eval/engine.py computes them; with likelihoods there is one pass.
    """
    at = next(model.parameters()).device
    places, rows, length = len(model.blocks) + 2, s.batch_size, prompt + s.max_new_tokens
    model.eval()
    slots = model.new_slots(rows * s.beams, length)
    first = model.new_cache(rows_of_pass(torch.device(device).type, rows, prompt), prompt)

    def see(cache) -> list[torch.Tensor]:
        """Count a cache, each layer's part at the layer's place, while the result is there."""
        for stack in cache.stacks.values():
            footprint.see(stack, counted=False)
        parts = [torch.empty((2, *keys.shape), dtype=keys.dtype, device=at) for keys in cache.keys]
        for place, part in enumerate(parts, 1):
            footprint.see(part, place)
        return parts

    with counting(model, device) as footprint:
        begin, since = footprint.live(places), len(footprint.events)
        ids = torch.zeros(rows, prompt, dtype=torch.long, device=at)
        mask = torch.ones_like(ids)
        if s.scoring == "likelihood":
            hidden = model.hidden(ids, mask)
            model.logits(hidden.flatten(0, 1)[:CHUNK])
            return Phase(begin, footprint.events[since:], [0] * places, footprint.flops)
        static, read = see(slots), see(first)
        logits = model.logits(model.hidden(ids[: len(first.keys[0])], cache=first)[:, -1])
        flops = footprint.flops * rows // len(first.keys[0])
        del logits, read
        slots.lengths = [length - 2] + [length - 1] * (rows * s.beams)  # they differ: a mask
        slots.begin(rows * s.beams)
        token = ids.new_zeros(rows * s.beams, 1)
        logits = model.logits(model.hidden(token, cache=slots)[:, -1])
        if s.temperature > 0 or s.beams > 1:
            logits.log_softmax(dim=-1)
        del static
    return Phase(begin, footprint.events[since:], [0] * places, flops)
