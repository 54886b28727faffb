"""config.json -> a family and its Config, and the model of that shape without memory."""

import gc
import importlib
from dataclasses import fields, replace
from pathlib import Path

import torch

from files.errors import UserError
from files.reading import read_json, resolve_inside
from files.typed import typed
from model.config_keys import NEUTRAL, changes_nothing, check_architectures, note_passed, refused
from model.language import LanguageModel
from model.quantize import quantization_of
from model.registry import cached, find, resolve

MODEL_TYPES = {  # model_type in config.json -> the file here; llama.py has a row for each of its
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "bloom": "bloom",
    "opt": "opt",
    "gptj": "gptj",
}
FAMILIES = list(dict.fromkeys(MODEL_TYPES.values()))
NULL_IS_DEFAULT = {"rope_theta", "max_window_layers", "use_sliding_window"}
FALSE_IS_NULL = {"layer_types", "rope_scaling", "sliding_window"}
LIMITS = {  # sizes below these; others below 2^24
    "num_hidden_layers": 1000,
    "n_layer": 1000,
    "hidden_size": 2**17,
    "n_embd": 2**17,
    "num_attention_heads": 2**12,
    "n_head": 2**12,
}


def skeleton(family, config) -> LanguageModel:
    """The model without memory: every parameter has its shape and no values."""
    collecting = gc.isenabled()
    gc.disable()  # collections while a thousand modules are made take five times as long
    try:
        with torch.device("meta"):
            return family.Model(config)
    finally:
        if collecting:
            gc.enable()


def with_layers(family, config, layers: int):
    """A family's Config with another number of blocks."""
    field = family.SPELLINGS.get("num_hidden_layers", "num_hidden_layers")
    return replace(config, **{field: layers})


def describe(name: str, revision: str | None = None):
    """(family module, its Config, where that was read) of a model without its weights.

    It is read from the model's folder, the hub's cache, model/registry.py or one small download.
    Raises UserError.
    """
    entry = find(name)
    if isinstance(entry, Path):
        folder = resolve(name, revision)
    else:
        folder = cached(entry.repo, revision or entry.revision, "config")
        if folder is None and entry.config and not revision:
            return *family_and_config(entry.config, "registry"), "model/registry.py"
        folder = folder or resolve(name, revision, need="config")
    return *read_config(folder), str(folder / "config.json")


def read_config(folder: Path):
    """folder/config.json -> (family module, its Config).

    Raises UserError for what is missing, malformed or unsupported.
    """
    path = resolve_inside(folder, "config.json")
    return family_and_config(read_json(path), str(path))


def family_and_config(raw: dict, where: str):
    """The fields of a config.json -> (family module, its Config)."""
    quantization_of(raw, where)
    raw = {key: value for key, value in raw.items() if key != "quantization_config"}
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{where}: model_type {kind!r:.200} is not supported; choose from {known}")
    family = importlib.import_module(f"model.{MODEL_TYPES[kind]}")
    return family, config_from(family, raw, where)


def config_from(family, raw: dict, where: str):
    """The family's Config from the fields of a config.json.

    Raises UserError for values of the wrong type, for what cannot be computed, for classes that
    are not causal language models, and for unknown keys that may matter, all of them at once.
    """
    known = {field.name: field.type for field in fields(family.Config)}
    raw = unified(family, raw, known, where)
    tied = raw.get("tie_word_embeddings", family.Config.tie_word_embeddings)
    check_architectures(raw.get("architectures"), f"{raw['model_type']}Model", bool(tied), where)
    values = dict(family.ROWS[raw["model_type"]])
    passed, refused_keys = [], {}
    for key, value in raw.items():
        default_is_false = key in known and getattr(family.Config, key) is False
        if value is None and (default_is_false or key in NULL_IS_DEFAULT):
            passed.append(key)
        elif key in known:
            check_type(key, value, known[key], where)
            values[key] = value
        elif changes_nothing(key, value, family.HARMLESS, NEUTRAL | family.ONLY):
            passed.append(key)
        else:
            refused_keys[key] = value
    if refused_keys:
        raise refused(refused_keys, where)
    config = family.Config(**values)
    try:
        config.check()
    except (KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        wrong = f"incomplete or malformed setting ({type(error).__name__}: {error})"
        raise UserError(f"{where}: {wrong}") from None
    if passed:
        note_passed(passed, where)
    return config


def unified(family, raw: dict, known: dict, where: str) -> dict:
    """The fields of a config.json in one spelling each. Raises UserError where two differ."""
    raw = dict(raw)
    for other, name in family.SPELLINGS.items():
        if other in raw and name in raw and raw[other] != raw[name]:
            raise UserError(
                f"{where}: {other} = {raw[other]!r} and {name} = {raw[name]!r} are two spellings "
                "of one setting and differ"
            )
        if other in raw:
            raw[name] = raw.pop(other)
    if "rope_scaling" in known:
        rope = raw.pop("rope_parameters", None)  # of transformers 5: theta and extension in one
        if rope and not raw.get("rope_scaling"):
            raw["rope_scaling"] = rope
        if isinstance(raw.get("rope_scaling"), dict) and raw["rope_scaling"].get("rope_theta"):
            raw["rope_theta"] = raw["rope_scaling"]["rope_theta"]
    return raw | {key: None for key in FALSE_IS_NULL if raw.get(key) is False}


def check_type(key: str, value, kind, where: str) -> None:
    """Refuse a config value of the wrong type; sizes must be positive and not absurd."""
    typed(value, kind, where, key)
    if kind is float and not 0 < value < 1e30:
        raise UserError(f"{where}: {key} = {value!r:.50} must be a positive number")
    if type(value) is not int or kind is float or (key == "max_window_layers" and value == 0):
        return
    if not 0 < value < LIMITS.get(key, 2**24):
        most = LIMITS.get(key, 2**24) - 1
        raise UserError(f"{where}: {key} = {value!r:.50} is out of range (1 to {most})")
