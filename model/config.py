"""config.json -> a family and its Config, and the model of that shape without memory."""

import gc
import importlib
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from model.errors import UserError
from model.files import inside, read_json
from model.quantize import quantization_of
from model.registry import cached, find, resolve

FAMILIES = ["llama", "bloom", "opt", "gptj"]  # model_type in config.json -> the file of that name; one row a family

# Fields of every config.json that do not change what the forward pass computes; each family's file lists its own.
IGNORED = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "cls_token_id", "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label", "initializer_range",
    "label2id", "model_type", "neftune_noise_alpha", "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "problem_type", "pruned_heads",
    "return_dict", "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unk_token_id", "unsloth_version", "use_bfloat16", "use_cache",
    "do_sample", "max_length", "min_length", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p",  # of generation, once saved here
}
ONLY = {"is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False, "partial_rotary_factor": 1.0}  # fields that are known in one value
LIMITS = {  # sizes below these; others below 2^24
    "num_hidden_layers": 1000, "n_layer": 1000, "hidden_size": 2**17, "n_embd": 2**17, "num_attention_heads": 2**12, "n_head": 2**12,
}


def skeleton(family, config) -> nn.Module:
    """The model without memory: every parameter has its shape and no values."""
    collecting = gc.isenabled()
    gc.disable()  # a thousand small modules would make Python look through all that torch imported: five times as slow
    try:
        with torch.device("meta"):
            return family.Model(config)
    finally:
        if collecting:
            gc.enable()


def describe(name: str, revision: str | None = None):
    """(family module, its Config, where that stands) of a model without its weights: from its folder, the cache, our own registry, or
    one small download. Raises UserError."""
    found = find(name)
    if isinstance(found, Path):
        folder = resolve(name, revision)
    else:
        folder = cached(found.repo, revision or found.revision, "config")
        if folder is None and found.config and not revision:
            return *family_and_config(found.config, "registry"), "model/registry.py"
        folder = folder or resolve(name, revision, need="config")
    return *read_config(folder), str(folder / "config.json")


def read_config(folder: Path):
    """folder/config.json -> (family module, its Config). Raises UserError for what is missing, malformed or unsupported."""
    path = inside(folder, "config.json")
    return family_and_config(read_json(path), str(path))


def family_and_config(raw: dict, where: str):
    """The fields of a config.json -> (family module, its Config)."""
    quantization_of(raw, where)
    raw = {key: value for key, value in raw.items() if key != "quantization_config"}
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{where}: model_type {kind!r:.200} is not supported; there is: {', '.join(FAMILIES)}")
    family = importlib.import_module(f"model.{kind}")
    return family, config_from(family, raw, where)


def config_from(family, raw: dict, where: str):
    """The family's Config from the fields of a config.json; a field that is neither known nor harmless is refused by name."""
    known = {field.name: field.type for field in fields(family.Config)}
    raw, only = dict(raw), ONLY | family.ONLY
    for other, name in family.SPELLINGS.items():
        if other in raw and name in raw and raw[other] != raw[name]:
            raise UserError(f"{where}: {other} = {raw[other]!r} and {name} = {raw[name]!r} are two spellings of one setting and differ")
        if other in raw:
            raw[name] = raw.pop(other)
    if "rope_scaling" in known:
        rope = raw.pop("rope_parameters", None)  # the spelling of transformers 5: theta and extension in one dict
        if rope and not raw.get("rope_scaling"):
            raw["rope_scaling"] = rope
        if isinstance(raw.get("rope_scaling"), dict):
            raw["rope_theta"] = raw["rope_scaling"].get("rope_theta", raw.get("rope_theta", 10000.0))
    values = {}
    for key, value in raw.items():
        if key in known:
            check_type(key, value, known[key], where)
            values[key] = value
        elif key not in IGNORED | family.HARMLESS and (key not in only or value != only[key]):
            raise UserError(f"{where}: setting {key!r:.100} = {value!r:.200} is not supported")
    config = family.Config(**values)
    try:
        config.check()
    except (KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{where}: incomplete or malformed setting ({type(error).__name__}: {error})") from None
    return config


def check_type(key: str, value, kind, where: str) -> None:
    """Refuse a config value of the wrong type; sizes must be positive and not absurd."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        if not 0 < value < 1e30:
            raise UserError(f"{where}: {key} = {value!r:.50} must be a positive number")
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: {key} = {value!r:.200} should be {getattr(kind, '__name__', kind)}")
    if number and isinstance(value, int) and not 0 < value < LIMITS.get(key, 2**24):
        raise UserError(f"{where}: {key} = {value!r:.50} is out of range (1 to {LIMITS.get(key, 2**24) - 1})")
