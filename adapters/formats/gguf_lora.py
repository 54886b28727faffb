"""A LoRA as a GGUF file of its own, for any GGUF file of its base (llama.cpp's --lora)."""

from pathlib import Path

import torch
from torch import Tensor

from adapters.attach import in_order
from adapters.base import PREFIX
from adapters.formats.base_model import base_name
from adapters.formats.gguf_files import DTYPES, Entry, write_file
from adapters.formats.gguf_model import check_model, name_of, reordered
from adapters.formats.peft_write import plain_lora
from files.errors import UserError
from model.language import LanguageModel


def lora_of(model: LanguageModel) -> dict[str, Tensor]:
    """The tensors of the loaded adapter as a LoRA with alpha = r, by PEFT's names.

    Raises UserError for what llama.cpp cannot add to a base.
    """
    names = in_order(model)
    if len(names) != 1 or not isinstance(names[0], str):
        raise UserError("llama.cpp takes one LoRA in a file: combine makes one of several adapters")
    otherwise = "use --gguf merged where it can be merged, or export --for transformers"
    _, tensors = plain_lora(model, names[0], "llama.cpp", otherwise)
    shared = [model.outer_sites["head"], model.outer_sites["embed"]]
    wrong = next((key for key in tensors if any(site in key for site in shared)), None)
    if model.tied and wrong:
        raise UserError(
            f"llama.cpp has no place for {wrong} in a model whose head is its embedding: use "
            "--gguf merged"
        )
    return tensors


def write_lora(model: LanguageModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the loaded adapter as a GGUF file. Raises UserError as `lora_of` does."""
    architecture = check_model(model)
    tensors: dict[str, Entry] = {}
    ranks = set()
    for key, tensor in lora_of(model).items():
        module, _, leaf = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if leaf == "lora_embedding_A":
            tensor = tensor.T  # llama.cpp looks up its rows
        end = leaf.replace("embedding_", "").lower()
        if end == "lora_b":
            ranks.add(tensor.shape[1])
            tensor = reordered(model, module, tensor)
        name = f"{name_of(model, module)}.weight.{end}"
        tensors[name] = (tensor.to(dtype), lambda tensor: tensor)
    (rank,) = ranks
    fields = {
        "general.type": "adapter",
        "general.name": f"LoRA of {base_name(model)}",
        "general.file_type": DTYPES[dtype][1],
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    write_file(path, architecture, fields, tensors)
