"""Quantised forms of a model beside the plain one: bytes, a LoRA step, greedy decoding."""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from adapters import attach, use
from eval.generate import generate
from model.language import LanguageModel
from model.load import load_model
from model.quantize import STORED_AS


def quantize_lines(model: str, repeats: int) -> Iterator[str]:
    """Bytes, seconds of a LoRA step of 4 x 128 tokens, and tokens per second of one decoded row.

    All are measured in turn in one process; the least of `repeats` counts. Raises UserError.
    """
    ids = torch.randint(5, 500, (4, 128), generator=torch.Generator().manual_seed(0))
    models: dict[str, LanguageModel] = {}
    for stored in ("", *STORED_AS):
        models[stored] = load_model(model, quantize=stored)
        attach(models[stored], "lora")
    least = {stored: (float("inf"), float("inf")) for stored in models}
    for stored, variant in [*models.items()] * repeats:
        use(variant, ["default"])
        began = time.perf_counter()
        F.cross_entropy(variant(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        trained = time.perf_counter()
        use(variant, [])
        new = generate(variant, ids[:1, :16], max_new_tokens=32)[0]
        seconds = trained - began, (time.perf_counter() - trained) / len(new)
        least[stored] = tuple(map(min, seconds, least[stored]))
    yield f"{model}: least of {repeats}"
    yield f"{'':12}{'bytes':>15}{'of blocks':>15}{'step, s':>10}{'tokens/s':>10}"
    for stored, variant in models.items():
        name = stored or str(variant.dtype).removeprefix("torch.")
        step, token = least[stored]
        sizes = f"{base_bytes(variant):15,}{base_bytes(variant.blocks):15,}"
        yield f"{name:12}{sizes}{step:10.2f}{1 / token:10.1f}"


def base_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, without those of adapters."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return sum(tensor.nbytes for name, tensor in tensors if ".adapters." not in name)
