"""config.json + safetensors -> a frozen model, each tensor straight from the file onto its device."""

import hashlib
import importlib
import warnings
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from model.errors import UserError, unknown
from model.files import read_json, tensors
from model.registry import resolve

FAMILIES = ["llama"]  # model_type in config.json -> the file of that name; one row a family

# Fields of config.json that do not change what the forward pass computes.
IGNORED = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "is_llama_config", "label2id", "max_sequence_length", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "return_dict", "rope_interleaved", "torch_dtype", "transformers_version",
    "transformers.js_config", "unk_token_id", "use_cache", "problem_type", "is_encoder_decoder",
}


def load_model(
    name: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    devices: list[str] | None = None,
    revision: str | None = None,
) -> nn.Module:
    """A registry name, hub repository or folder -> the model with its published weights, frozen, in eval mode.

    dtype is that of storage and computation, None keeps the checkpoint's own. Raises UserError for anything wrong with the
    name or the files, and for quantize and devices, which this version does not have yet.
    """
    if quantize is not None:
        raise UserError(f"quantize={quantize!r}: int8 and nf4 weights are not in this version; load with quantize=None")
    if devices is not None:
        raise UserError(f"devices={devices!r}: splitting layers over devices is not in this version; give one device=")
    folder = resolve(name, revision)
    family, config = read_config(folder)
    with torch.device("meta"):
        model = family.Model(config)
    digest = hashlib.sha256(repr(config).encode())
    load_weights(model, family.rename, tensors(folder), dtype, torch.device(device), digest, where=str(folder))
    model.dtype = next(model.parameters()).dtype
    model.folder = folder
    model.fingerprint = digest.hexdigest()[:16]  # of the config and a sample of every tensor as stored: what an adapter was made for
    return model.requires_grad_(False).eval()


def read_config(folder: Path):
    """folder/config.json -> (family module, its Config). Raises UserError for what is missing, malformed or unsupported."""
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{path}: model_type {kind!r} is not supported; there is: {', '.join(FAMILIES)}")
    family = importlib.import_module(f"model.{kind}")
    return family, config_from(family.Config, raw, str(path))


def config_from(cls, raw: dict, where: str):
    """The dataclass `cls` from the fields of a config.json; a field that is neither known nor harmless is refused by name."""
    raw = dict(raw)
    rope = raw.pop("rope_parameters", None)  # the spelling of transformers 5: theta and extension in one dict
    if rope is not None and raw.get("rope_scaling") is None:
        raw["rope_scaling"] = rope
    if isinstance(raw.get("rope_scaling"), dict):
        raw["rope_theta"] = raw["rope_scaling"].get("rope_theta", raw.get("rope_theta", 10000.0))
    known = {field.name: field.type for field in fields(cls)}
    values = {}
    for key, value in raw.items():
        if key in known:
            check_type(key, value, known[key], where)
            values[key] = value
        elif key not in IGNORED:
            raise UserError(f"{where}: setting {key!r} = {value!r} is not supported")
    config = cls(**values)
    try:
        config.check()
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{where}: incomplete or malformed setting ({type(error).__name__}: {error})") from None
    return config


def check_type(key: str, value, kind, where: str) -> None:
    """Refuse a config value of the wrong type; sizes must be positive and below 2^24."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: {key} = {value!r} should be {getattr(kind, '__name__', kind)}")
    if number and isinstance(value, int) and not 0 < value < 2**24:
        raise UserError(f"{where}: {key} = {value} is out of range")


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; a finite sum says so without a second tensor of the same size."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def load_weights(model: nn.Module, rename, pairs, dtype: torch.dtype | None, device: torch.device, digest, where: str) -> None:
    """Put every tensor into the parameter of its name, exactly once; missing, extra, misshapen and non-finite ones are errors."""
    waiting = dict(model.named_parameters())
    loaded: set[str] = set()
    samples: dict[str, bytes] = {}
    saved_head = None
    for key, tensor in pairs:
        name = rename(key)
        if name is None:
            continue
        if name == "lm_head.weight" and model.lm_head is None:  # tied, and in the file all the same
            saved_head = tensor
            continue
        if name in loaded:
            raise UserError(f"{where}: tensor {key!r} is there twice")
        if name not in waiting:
            raise UserError(f"{where}: {unknown('tensor', key, waiting)}")
        expected = waiting.pop(name)
        if tensor.shape != expected.shape:
            raise UserError(f"{where}: tensor {key!r} is {list(tensor.shape)}, the config asks for {list(expected.shape)}")
        if not tensor.is_floating_point():
            raise UserError(f"{where}: tensor {key!r} is stored as {tensor.dtype}, not as floating point")
        if not is_finite(tensor):
            raise UserError(f"{where}: tensor {key!r} holds NaN or infinite values")
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].float()
        samples[name] = sample.numpy().tobytes()
        put(model, name, tensor.to(device=device, dtype=dtype))
        loaded.add(name)
    for name in sorted(samples):
        digest.update(name.encode() + samples[name])
    if waiting:
        names = sorted(waiting)
        raise UserError(f"{where}: {len(names)} tensors are missing, the first is {names[0]!r}")
    if saved_head is not None and not torch.equal(model.input_embedding.weight, saved_head.to(device=device, dtype=dtype or saved_head.dtype)):
        warnings.warn(f"{where}: tie_word_embeddings is true, yet lm_head.weight differs from the embedding; using both as stored", stacklevel=3)
        model.untie()
        put(model, "lm_head.weight", saved_head.to(device=device, dtype=dtype))


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """model.<name> = Parameter(tensor)."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
