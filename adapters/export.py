"""A model as a folder that transformers and vLLM read: config.json, safetensors in shards, and the tokenizer's files as they were.

Tensors go to the disk one after another, so that the model is never in memory twice; model.safetensors, or the index of the shards, is written last:
a folder without it is no model. config.json is the source's with what merging made necessary (`changes`), and nothing else.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.places import all_sites
from model.errors import UserError
from model.files import DTYPES, inside, make_folder, read_json, safetensors, weight_files, write_atomically, write_text
from model.load import is_finite, read_config, skeleton

COPIED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
          "chat_template.jinja", "generation_config.json")
CLASSES = {"llama": "LlamaForCausalLM", "bloom": "BloomForCausalLM", "opt": "OPTForCausalLM", "gptj": "GPTJForCausalLM"}


def export_model(model: nn.Module, folder: str | Path, shard_bytes: int = 5_000_000_000) -> list[Path]:
    """Write a plain or merged model into `folder`, new or empty, for transformers and for our own load_model; returns the files.

    Shards hold at most shard_bytes of tensors each, or one tensor that is larger. What was written is read again and compared with the model.
    Raises UserError, before anything is written: while an adapter is on, for a folder that holds something, for a bias that the family's
    architecture has no place for, for weights that are not finite, and for a disk without the room.
    """
    folder = Path(folder)
    on = next((path for path, site in all_sites(model) if site.active), None)
    if on:
        raise UserError(f"an adapter is on at {on}: merge(model) first, or switch it off with use(model, [])")
    if shard_bytes < 1:
        raise UserError(f"shards of {shard_bytes} bytes cannot hold a tensor")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not {'empty' if folder.is_dir() else 'a folder'}: give another one for the model")
    tensors = {name: parameter for name, parameter in model.named_parameters() if ".adapters." not in name}  # a tied head is not among them
    changed = changes(model, set(tensors))
    for name, parameter in tensors.items():
        if parameter.dtype not in DTYPES.values() or not is_finite(parameter):
            raise UserError(f"{name} holds NaN or infinite values, or is {parameter.dtype}: nothing was written")
    check_room(folder, tensors)

    make_folder(folder)
    if changed:
        raw = read_json(inside(model.folder, "config.json"))
        write_text(folder / "config.json", json.dumps(raw | changed, indent=2, ensure_ascii=False) + "\n")
    for name in COPIED if changed else ("config.json", *COPIED):
        source = inside(model.folder, name)
        if source.is_file():
            write_atomically(folder / name, lambda path, source=source: shutil.copyfile(source, path))
    write_shards(folder, tensors, shard_bytes)
    compare(folder, tensors)
    read_config(folder)
    return sorted(path for path in folder.iterdir())


def changes(model: nn.Module, own: set[str]) -> dict:
    """The settings of config.json that are no longer those of the source. Raises UserError for a tensor that the architecture has not."""
    family, source = read_config(model.folder)
    config = replace(model.config, tie_word_embeddings=model.tied)  # a source that says true and holds two different tensors is not tied
    names = {name for name, _ in skeleton(family, config).named_parameters()}
    extra = sorted(own - names)
    if extra:
        raise UserError(f"the {model.family} architecture has no place for {extra[0]}, which merging an adapter has made: transformers could not read it; "
                        "evaluate and generate use the adapter unmerged")
    changed = {key: value for key, value in vars(config).items() if value != getattr(source, key)}
    dtype = str(model.input_embedding.weight.dtype).removeprefix("torch.")
    raw = read_json(inside(model.folder, "config.json"))
    changed |= {key: dtype for key in ("torch_dtype", "dtype") if raw.get(key) not in (None, dtype)}  # loaded in another one
    if "architectures" not in raw:
        changed["architectures"] = [CLASSES[model.family]]  # vLLM asks for it
    return changed


def check_room(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raises UserError when the disk has not the room for these tensors."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    needed, free = sum(map(size, tensors.values())), shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left: nothing was written")


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def write_shards(folder: Path, tensors: dict[str, Tensor], shard_bytes: int) -> None:
    """model.safetensors, or model-00001-of-0000N.safetensors and so on, and behind them their index."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + size(tensor) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size(tensor)
    if len(shards) == 1:
        write_atomically(folder / "model.safetensors", lambda path: write_safetensors(path, tensors))
        return
    index: dict = {"metadata": {"total_size": sum(map(size, tensors.values()))}, "weight_map": {}}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_atomically(folder / file, lambda path, shard=shard: write_safetensors(path, shard))
        index["weight_map"] |= dict.fromkeys(shard, file)
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One file, tensor by tensor: 8 bytes with the header's length, a JSON header, the data. (The library's own writer copies all of them first.)"""
    words = {dtype: word for word, dtype in DTYPES.items()}
    ordered = sorted(tensors.items(), key=lambda one: -one[1].itemsize)  # so that each begins at a multiple of its elements' size
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        header[name] = {"dtype": words[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size(tensor)]}
        end += size(tensor)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))


def compare(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read the folder's tensors again, one at a time. Raises UserError unless they are these to the bit."""
    left = dict(tensors)
    for name, tensor in read_back(folder):
        expected = left.pop(name, None)
        if expected is None or tensor.dtype != expected.dtype or not torch.equal(tensor, expected.detach().cpu()):
            raise UserError(f"{folder} does not hold what was written at {name}; the disk may be failing")
    if left:
        raise UserError(f"{folder} does not hold {next(iter(left))}, which was written; the disk may be failing")


def read_back(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(folder):
        yield from safetensors(path)
