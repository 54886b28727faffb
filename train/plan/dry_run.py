"""A training step and an answer on torch's meta device: memory by place, and FLOPs.

Places of a model: 0 is the embedding, 1 ... L are the blocks, L + 1 is the last norm, the head and
the loss. Lists of this file are bytes by place.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
from train.plan.phases import ROUNDING, Phase, Step, minus, sizes
from train.settings import Eval, Train
from train.teacher import Teacher


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
    teacher: Teacher | None = None,
) -> Step:
    """The step of train/loop.py with as many rows of `length` tokens as are in the model at once.

    share: of the tokens that have a label. device: cpu or cuda, whose kernels are counted. The
    model may also be on a real device: the same is counted (tests). teacher: whose distributions
    are learned.
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
        if teacher:
            with teacher.speaking():
                own = labels_of_share(model, ids, share, s.packing)
            labels = teacher.targets(labels, ids, weights, None, own)
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
