"""Quantised forms of a model beside the plain one: bytes, a LoRA step, greedy decoding."""

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from adapters import attach, use
from benchmarks.process import in_turn
from eval.generate import generate
from model.load import load_model
from model.quantize import STORED_AS


def quantize_lines(model: str, repeats: int) -> Iterator[str]:
    """Bytes, seconds of a LoRA step of 4 x 128 tokens, and tokens per second of one decoded row.

    All are measured in turn in one process; the least of `repeats` counts. Raises UserError.
    """
    sides = {
        stored: ("benchmarks.quantize:variant", {"model": model, "quantize": stored})
        for stored in ("", *STORED_AS)
    }
    found = in_turn(sides, repeats, warm=0, fresh=False)
    yield f"{model}: least of {repeats}"
    yield f"{'':12}{'bytes':>15}{'of blocks':>15}{'step, s':>10}{'tokens/s':>10}"
    for stored, side in found.items():
        facts = side.facts
        step, token = (min(run[key] for run in side.runs) for key in ("step", "token"))
        sizes = f"{facts['bytes']:15,}{facts['blocks']:15,}"
        yield f"{stored or facts['dtype']:12}{sizes}{step:10.2f}{1 / token:10.1f}"


def variant(o: dict) -> Callable[[], dict]:
    """The work of one form: a step with the adapter, then decoding without."""
    model = load_model(o["model"], quantize=o["quantize"])
    attach(model, "lora")
    ids = torch.randint(5, 500, (4, 128), generator=torch.Generator().manual_seed(0))
    facts = {
        "bytes": base_bytes(model),
        "blocks": base_bytes(model.blocks),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

    def run() -> dict:
        use(model, ["default"])
        began = time.perf_counter()
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        trained = time.perf_counter()
        use(model, [])
        new = generate(model, ids[:1, :16], max_new_tokens=32)[0]
        token = (time.perf_counter() - trained) / len(new)
        return facts | {"step": trained - began, "token": token}

    return run


def base_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, without those of adapters."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return sum(tensor.nbytes for name, tensor in tensors if ".adapters." not in name)
