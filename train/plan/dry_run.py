"""A training step and an answer of a model without memory: what each holds, place by place, and how much it computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.attach import after_step, named_parameters, penalty
from train.loss import CHUNK, summed_loss
from train.plan.footprint import Footprint, kernels_of, watch
from train.settings import Eval, Train

WHOLE = 3  # blocks that a process of a sharded run has whole at a time: the one that computes, the gathered buffer of the next, a copy on its way
ROUNDING = {"cpu": 1, "cuda": 512}  # bytes: the caching allocator of a card gives out multiples


@dataclass(frozen=True)
class Phase:
    """Something a run does: the bytes that are there when it begins, by place, and what comes and goes from then on."""

    begin: list[int]
    events: list[tuple[int, int]]
    kept: list[
        int
    ]  # bytes that the forward pass of one micro-batch keeps for its backward pass, by place
    flops: int  # of one micro-batch, or of an answer's first pass

    def peak(self, stage: list[int], batches: int = 1) -> list[int]:
        """The most bytes that each device holds, where place p is on device stage[p] and `batches` micro-batches make a step: stage s of S keeps those of
        up to S - s of them (train/pipeline.py)."""
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

    def in_parts(self, matrices: list[int], processes: int) -> "Phase":
        """The same in one of several processes that hold the blocks' matrices, bytes by place, together (model/fsdp.py): blocks are whole while the step
        is among them, and not while it is at the embedding or the head."""
        events, before = [], 0
        for place, size in self.events:
            now = gathered(matrices) if 0 < place < len(self.begin) - 1 else 0
            events += [(place, now - before), (place, size)]
            before = now
        return replace(self, begin=minus(self.begin, elsewhere(matrices, processes)), events=events)


def elsewhere(matrices: list[int], processes: int) -> list[int]:
    """Bytes of the blocks' matrices that lie in the other processes, by place."""
    return [size - -(-size // processes) for size in matrices]


def gathered(matrices: list[int]) -> int:
    """Bytes of the blocks that a process has whole at a time."""
    return WHOLE * max(matrices)


@dataclass(frozen=True)
class Step:
    """One training step in the middle of a run. Lists are bytes by place."""

    weights: list[int]
    adapter: list[int]
    gradients: list[int]
    optimizer: list[int]
    phase: Phase

    @property
    def static(self) -> list[int]:
        return [
            sum(parts)
            for parts in zip(
                self.weights, self.adapter, self.gradients, self.optimizer, strict=True
            )
        ]

    def in_parts(self, matrices: list[int], processes: int) -> "Step":
        """As `Phase.in_parts`."""
        return replace(
            self,
            weights=minus(self.weights, elsewhere(matrices, processes)),
            phase=self.phase.in_parts(matrices, processes),
        )


def sizes(model: nn.Module, tensors: dict[str, Tensor], round_to: int) -> list[int]:
    """The bytes of these tensors by place; what two names share, once."""
    counted = Footprint(round_to=round_to)
    for name, tensor in tensors.items():
        counted.see(tensor, 1 + model.place_of(name))
    return counted.live(len(model.blocks) + 2)


@contextmanager
def counting(model: nn.Module, device: str, share: float = 1.0) -> Iterator[Footprint]:
    """A footprint that the model's tensors are in already."""
    footprint = Footprint(share, ROUNDING[device])
    for name, tensor in everything(model).items():
        footprint.see(tensor, 1 + model.place_of(name))
    with ExitStack() as stack:
        stack.enter_context(kernels_of(device))
        stack.enter_context(watch(model, footprint))
        stack.enter_context(footprint)
        yield footprint
    footprint.alive.clear()  # what dies later is nobody's business


def matrices_of(model: nn.Module, device: str) -> list[int]:
    """Bytes of the blocks' matrices by place: what several processes may hold together (model/fsdp.py)."""
    base = {
        name: one
        for name, one in model.named_parameters()
        if name.startswith(f"{model.blocks_at}.") and ".adapters." not in name
    }
    return sizes(
        model, {name: one for name, one in base.items() if one.dim() > 1}, ROUNDING[device]
    )


def everything(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def training_step(
    model: nn.Module,
    s: Train,
    length: int,
    share: float = 1.0,
    device: str = "cpu",
    processes: int = 1,
) -> Step:
    """The step that train/loop.py takes, with `micro_batch_size` rows of `length` tokens, `share` of them with a label, on the kernels of `device`
    (cpu, cuda), in one of several processes. The model may have memory too: the same is counted (tests)."""
    at = next(model.parameters()).device
    trained = named_parameters(model)
    places = len(model.blocks) + 2
    by_place: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        by_place.setdefault(1 + model.place_of(name), []).append(parameter)
    optimizers = {
        place: torch.optim.AdamW(some, foreach=device == "cuda") for place, some in by_place.items()
    }
    for parameter in trained.values():  # the step is not the first: AdamW's moments are there
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers.values():
        optimizer.step()
    rows, several = (
        min(s.micro_batch_size, s.batch_size),
        s.batch_size > processes * s.micro_batch_size,
    )
    if not several:  # else the micro-batch is not the first of its step: the gradients of those before it are there
        model.zero_grad(set_to_none=True)
    model.train()
    model.checkpointing = s.checkpoint_every
    stay = {tensor.untyped_storage()._cdata for tensor in everything(model).values()}
    with counting(model, device, share) as footprint:
        static = footprint.live(places)
        for place, optimizer in optimizers.items():
            for state in optimizer.state.values():
                for moment in state.values():
                    footprint.see(moment, place)
        moments = minus(footprint.live(places), static)
        for name, parameter in trained.items():
            if parameter.grad is not None:
                footprint.see(parameter.grad, 1 + model.place_of(name))
        begin, since = footprint.live(places), len(footprint.events)
        ids, weights = (
            torch.zeros(rows, length, dtype=torch.long, device=at),
            torch.ones(rows, length, device=at),
        )
        before = footprint.live(places)
        with footprint.offloaded(stay) if s.offload else ExitStack():
            loss = summed_loss(model, ids, weights) / rows
            kept = minus(footprint.live(places), before)
            loss.backward()
        del loss
        flops = footprint.flops
        if processes > 1:
            sum_dry(list(trained.values()))
        if (extra := penalty(model)) is not None:
            extra.backward()
        gradients = sizes(
            model,
            {
                name: parameter.grad
                for name, parameter in trained.items()
                if parameter.grad is not None
            },
            footprint.round_to,
        )
        torch.nn.utils.clip_grad_norm_(trained.values(), s.clip)
        with footprint.all_at_once() if device == "cuda" else ExitStack():
            for place, optimizer in optimizers.items():
                footprint.place = place
                optimizer.step()
        after_step(model, 1, s.max_steps or 1000)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
    model.checkpointing = 0
    adapter = sizes(
        model,
        {name: tensor for name, tensor in everything(model).items() if ".adapters." in name},
        ROUNDING[device],
    )
    return Step(
        weights=minus(static, adapter),
        adapter=adapter,
        gradients=gradients,
        optimizer=moments,
        phase=Phase(begin, footprint.events[since:], kept, flops),
    )


def sum_dry(parameters: list[nn.Parameter]) -> None:
    """What train/parallel.py's `sum_gradients` allocates: all gradients in one piece, which they are parts of from then on."""
    flat = torch.cat(
        [
            torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten()
            for one in parameters
        ]
    )
    for parameter, part in zip(
        parameters, flat.split([one.numel() for one in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter) if parameter.grad is not None else None


def minus(these: list[int], those: list[int]) -> list[int]:
    return [one - other for one, other in zip(these, those, strict=True)]


@torch.no_grad()  # as torch.inference_mode, under which torch would hand over operations that are made of others
def answer(model: nn.Module, s: Eval, prompt: int, device: str = "cpu") -> Phase:
    """The first pass over `batch_size` prompts of `prompt` tokens and the last of `max_new_tokens`, as eval/generate.py and eval/beams.py make them;
    of eval.scoring = "likelihood", one pass."""
    at = next(model.parameters()).device
    places, rows = len(model.blocks) + 2, s.batch_size
    model.eval()
    first, cache = (
        model.new_cache(many, prompt + s.max_new_tokens) for many in (rows, rows * s.beams)
    )

    def put(one) -> None:
        """Count a cache, each layer's part where the layer is."""
        for place, pair in enumerate(zip(one.keys, one.values, strict=True), 1):
            for tensor in pair:
                footprint.see(tensor, place)

    with counting(model, device) as footprint:
        begin, since = footprint.live(places), len(footprint.events)
        ids, mask = (
            torch.zeros(rows, prompt, dtype=torch.long, device=at),
            torch.ones(rows, prompt, dtype=torch.long, device=at),
        )
        if s.scoring == "likelihood":
            hidden = model.hidden(ids, mask)
            model.logits(hidden.flatten(0, 1)[:CHUNK])
            return Phase(begin, footprint.events[since:], [0] * places, footprint.flops)
        put(first)
        logits = model.logits(model.hidden(ids, mask, cache=first)[:, -1])
        flops = footprint.flops
        del logits, first  # beams have more rows than prompts
        put(cache)
        one = cache.keys[
            0
        ].nbytes  # rows are chosen, one tensor after the other: copied and then replaced
        footprint.events += [
            (place, size) for place in range(1, places - 1) for size in (one, -one)
        ]
        cache.filled = prompt + s.max_new_tokens - 1
        whole = torch.ones(rows * s.beams, cache.filled + 1, dtype=torch.long, device=at)
        logits = model.logits(
            model.hidden(ids.new_zeros(rows * s.beams, 1), whole, cache=cache)[:, -1]
        )
        if s.temperature > 0 or s.beams > 1:
            logits.log_softmax(dim=-1)
    return Phase(begin, footprint.events[since:], [0] * places, flops)
