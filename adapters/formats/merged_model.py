"""A model as a folder that transformers and vLLM read.

It holds config.json, safetensors in shards, and the tokenizer's files as they were. Tensors go to
the disk one after another, so that the model is never in memory twice (model/shards.py).
config.json is the source's with what merging made necessary (`changes`), and nothing else.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from adapters.places import all_sites
from files.errors import UserError
from files.reading import read_json, resolve_inside
from files.writing import make_folder, write_atomically, write_text
from model.config import read_config, skeleton
from model.language import LanguageModel
from model.load import is_finite
from model.shards import check_empty, check_room, compare, copy_tokenizer, write_shards
from model.sites import base_parameters
from model.weights import DTYPES

SHARD = 5_000_000_000  # bytes of tensors in one file
CLASSES = {  # model_type -> the class of transformers
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "bloom": "BloomForCausalLM",
    "opt": "OPTForCausalLM",
    "gptj": "GPTJForCausalLM",
}


def export_model(model: LanguageModel, folder: str | Path, shard_bytes: int = SHARD) -> list[Path]:
    """Write a plain or merged model into `folder`, new or empty; returns the files.

    transformers and our own load_model read it. Shards hold at most shard_bytes of tensors each, or
    one tensor that is larger. What was written is read again and compared with the model. Raises
    UserError, before anything is written: while an adapter is on, for a folder that holds
    something, for quantised weights, for a bias that the family's architecture has no place for,
    for weights that are not finite, and for a disk without the room.
    """
    folder = Path(folder)
    on = next((path for path, site in all_sites(model) if site.active), None)
    if on:
        raise UserError(
            f"an adapter is on at {on}: merge(model) first, or switch it off with use(model, [])"
        )
    if shard_bytes < 1:
        raise UserError(f"shards of {shard_bytes} bytes cannot hold a tensor")
    if model.quantize:
        raise UserError(
            f"the model is stored as {model.quantize}: dequantize(model) makes plain weights, "
            "save_quantized(model, folder) keeps them as they are"
        )
    files = write_model(model, folder, changes(model, set(base_parameters(model))), {}, shard_bytes)
    read_config(folder)
    return files


def write_model(
    model: LanguageModel, folder: Path, changed: dict, beside: dict[str, Tensor], shard_bytes: int
) -> list[Path]:
    """Write the weights and the tensors `beside` them, config.json with what has `changed`, and the
    tokenizer's files; returns the files. Raises UserError as `export_model` does.
    """
    check_empty(folder)
    tensors = base_parameters(model) | beside  # a tied head is not among them
    for name, parameter in tensors.items():
        if parameter.dtype not in DTYPES or not is_finite(parameter):
            raise UserError(
                f"{name} holds NaN or infinite values, or is {parameter.dtype}: nothing was written"
            )
    check_room(folder, tensors)

    make_folder(folder)
    raw = read_json(resolve_inside(model.folder, "config.json"))
    config = folder / "config.json"
    if changed or "quantization_config" in raw:
        raw.pop("quantization_config", None)  # of weights that are plain now
        write_text(config, json.dumps(raw | changed, indent=2, ensure_ascii=False) + "\n")
    else:
        source = resolve_inside(model.folder, "config.json")
        write_atomically(config, lambda path: shutil.copyfile(source, path))
    copy_tokenizer(model.folder, folder)
    write_shards(folder, tensors, shard_bytes)
    compare(folder, tensors)
    return sorted(path for path in folder.iterdir())


def changes(model: LanguageModel, own: set[str]) -> dict:
    """The settings of config.json that are no longer those of the source.

    `own` are the names of the model's tensors. Raises UserError for one that the architecture does
    not have.
    """
    family, source = read_config(model.folder)
    # A source that says true and holds two different tensors is not tied.
    config = replace(model.config, tie_word_embeddings=model.tied)
    names = {name for name, _ in skeleton(family, config).named_parameters()}
    extra = sorted(own - names)
    if extra:
        raise UserError(
            f"the {config.model_type} architecture has no place for {extra[0]}, which merging an "
            "adapter has made: transformers could not read it; evaluate and generate use the "
            "adapter unmerged"
        )
    changed = {key: value for key, value in vars(config).items() if value != getattr(source, key)}
    dtype = str(model.input_embedding.weight.dtype).removeprefix("torch.")
    raw = read_json(resolve_inside(model.folder, "config.json"))
    # The source's dtype, if the model was loaded in another one.
    changed |= {k: dtype for k in ("torch_dtype", "dtype") if raw.get(k) not in (None, dtype)}
    if raw.get("architectures") != [CLASSES[config.model_type]]:
        changed["architectures"] = [CLASSES[config.model_type]]  # vLLM asks for it
    return changed


def name_tokenizer(folder: Path) -> None:
    """Name the class of a tokenizer.json: the model type, which decides else, is not known."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    if (folder / "tokenizer.json").is_file() and "tokenizer_class" not in config:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_text(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
