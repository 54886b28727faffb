"""A checkpoint's file in other forms: several shards, torch's own format."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def shard(folder, count: int = 3) -> None:
    """Turn model.safetensors into shards with an index."""
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {key: names[i % count] for i, key in enumerate(sorted(whole))}
    for name in names:
        save_file({key: whole[key] for key in whole if where[key] == name}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def as_bin(folder: Path, shards: int = 1, **options) -> Path:
    """Turn model.safetensors into torch's own format."""
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(whole, folder / "pytorch_model.bin", **options)
        return folder
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(sorted(whole))}
    for name in names:
        torch.save(
            {key: whole[key] for key in whole if where[key] == name}, folder / name, **options
        )
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    return folder
