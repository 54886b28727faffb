"""config.json + weights -> a frozen model, each tensor straight from the file onto its device."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from files.errors import UserError, unknown
from files.reading import read_json
from model.config import read_config, skeleton
from model.devices import device_named, split, start_cards
from model.fsdp import first_pass, is_part, part_of, shard
from model.language import LanguageModel
from model.quantize import (
    STORED_AS,
    quantization_of,
    quantize_skeleton,
    quantized,
    resolve_quantization,
)
from model.quantize.linear import QuantizedLinear
from model.registry import resolve
from model.weights import tensors

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

EXTRA = 2**25  # elements of a tensor that is not used, such as the attention masks of old files


def load_model(
    name: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    devices: Sequence[str | torch.device] | None = None,
    revision: str | None = None,
    layers_per_device: Sequence[int] | None = None,
    mesh: "DeviceMesh | None" = None,
) -> LanguageModel:
    """A registry name, hub repository or folder -> the model, frozen, in eval mode.

    dtype: of storage and computation; None: the checkpoint's own
    quantize: "int8", "llm-int8" or "nf4", for the Linears in the blocks (model/quantize); a folder
        that is quantised already is loaded as it is
    devices: the blocks are divided over several (model/devices.py), layers_per_device on each
    mesh: a DeviceMesh of processes that share the blocks (model/fsdp.py)
    Raises UserError for anything wrong with the name or the files.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UserError(f"dtype {dtype!r} is not a dtype of torch, such as torch.float32")
    if quantize and quantize not in STORED_AS:
        raise unknown("quantization", quantize, STORED_AS)
    places = [
        device if isinstance(device, torch.device) else device_named(device)
        for device in devices or [device]
    ]
    start_cards(places)
    folder = resolve(name, revision)
    family, config = read_config(folder)
    model = skeleton(family, config)
    stored, fingerprint = quantization_of(read_json(folder / "config.json"), str(folder))
    quantize = resolve_quantization(quantize or "", stored, str(folder))
    if mesh is not None and (quantize or len(places) > 1):
        raise UserError(
            "a sharded model is not quantised and has one device a process: leave out quantize and "
            "devices, and give a model that is not quantised"
        )
    most = EXTRA + max(parameter.numel() for parameter in model.parameters())
    if quantize:
        quantize_skeleton(model, quantize)
    if len(places) > 1:
        split(model, places, layers_per_device)
    if mesh is not None:
        shard(model, mesh)
    pairs, where = tensors(folder, most), str(folder)
    new = load_weights(model, family.rename, pairs, dtype, places[0], where, bool(stored))
    model.dtype = next(model.parameters()).dtype
    for linear in quantized(model).values():
        linear.dtype = model.dtype
    model.folder = folder
    model.fingerprint = fingerprint or new
    model.requires_grad_(False).eval()
    if mesh is not None:
        first_pass(model)
    return model


def weights_before(model: LanguageModel, paths: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(path, weight [out, in]) of Linears of a quantised model, as the files have them.

    Raises UserError for a folder whose weights are quantised already.
    """
    family, _ = read_config(model.folder)
    if quantization_of(read_json(model.folder / "config.json"), str(model.folder))[0]:
        raise UserError(
            f"{model.folder} holds the weights quantised: give the model that it was made from, "
            f"with --quantize {model.quantize}"
        )
    names = {f"{path}.weight": path for path in paths}
    for key, tensor in tensors(model.folder):
        name = family.rename(key.removeprefix("module."))
        if name in names:
            yield names[name], tensor


def is_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether no element is NaN or infinite as dtype.

    Reads the minimum and the maximum, which are NaN if any element is: no copy of the tensor.
    """
    return tensor.numel() == 0 or all(
        bool(extreme.to(dtype or tensor.dtype).isfinite()) for extreme in tensor.aminmax()
    )


def load_weights(
    model: LanguageModel,
    rename,
    pairs,
    dtype: torch.dtype | None,
    device: torch.device,
    where: str,
    stored: bool = False,
) -> str:
    """Put every tensor of `pairs` (name, tensor) into the parameter of its name, exactly once.

    Weights of quantised Linears are quantised one by one, on their device, from the stored values.
    stored=True: the files hold them quantised. Returns the fingerprint: a hash of every tensor's
    name, shape and a sample of its values. Raises UserError for missing, extra, misshapen and
    non-finite tensors.
    """
    waiting = {name: parameter.shape for name, parameter in model.named_parameters()}
    linears = quantized(model)
    parts: dict[str, tuple[QuantizedLinear, str]] = {}
    weights: dict[str, QuantizedLinear] = {}
    for path, linear in linears.items():
        if stored:
            parts |= {f"{path}.{leaf}": (linear, leaf) for leaf in linear.layout()}
        else:
            weights[f"{path}.weight"] = linear
            waiting[f"{path}.weight"] = torch.Size((linear.out_features, linear.in_features))
    waiting |= {name: getattr(linear, leaf).shape for name, (linear, leaf) in parts.items()}
    embedding = f"{model.outer_sites['embed']}.weight"
    tied = "lm_head.weight" not in waiting
    if tied:  # files may hold the head as well, or only the head
        waiting["lm_head.weight"] = waiting[embedding]
    for name, linear in weights.items():
        linear.allocate(model.device_of(name) if model.stages else device)
    samples: dict[str, bytes] = {}
    head = None
    for key, tensor in pairs:
        name = rename(key.removeprefix("module."))  # saved from a wrapper for parallel training
        if name is None:
            continue
        if name in samples:
            raise UserError(f"{where}: tensor {key!r:.200} is there twice")
        if name not in waiting:
            raise UserError(
                f"{where}: {unknown('tensor', key, waiting, 'the model has none of that name')}"
            )
        shape = waiting.pop(name)
        if tensor.shape != shape:
            raise UserError(
                f"{where}: tensor {key!r} is {list(tensor.shape)}, the config asks for "
                f"{list(shape)}"
            )
        here = model.device_of(name) if model.stages else device
        if name in parts:
            samples[name] = b""  # config.json has the fingerprint of the weights before
            linear, leaf = parts[name]
            try:
                linear.put(leaf, tensor.to(here))
            except UserError as error:
                raise UserError(f"{where}: tensor {key!r} {error}") from None
            continue
        if not tensor.is_floating_point():
            raise UserError(
                f"{where}: tensor {key!r} is stored as {tensor.dtype}, not as floating point"
            )
        samples[name] = sample_of(tensor)
        kept = None if name in weights else dtype
        tensor = tensor.to(device=here, dtype=kept)
        if not is_finite(tensor, dtype):
            raise UserError(
                f"{where}: tensor {key!r} holds NaN or infinite values, as {dtype or tensor.dtype}"
            )
        if name in weights:
            weights[name].store(tensor)
        elif tied and name == "lm_head.weight":
            head = tensor
        else:
            put(model, name, tensor)
        del tensor  # before the next one is read
    if tied:
        waiting.pop("lm_head.weight", None)
        if head is not None and embedding in waiting:
            put(model, embedding, head)
            waiting.pop(embedding)
            samples[embedding] = samples["lm_head.weight"]
    for path, linear in linears.items() if stored and not waiting else ():
        try:
            linear.check()
        except UserError as error:
            raise UserError(f"{where}: {path} {error}") from None
    if waiting:
        names = sorted(waiting)
        raise UserError(f"{where}: {len(names)} tensors are missing, the first is {names[0]!r}")
    if tied:
        model.tie()
        if head is not None and torch.equal(model.input_embedding.weight, head):
            del samples["lm_head.weight"]
        elif head is not None:
            warnings.warn(
                f"{where}: tie_word_embeddings is true, yet lm_head.weight differs from the "
                "embedding; using both as stored",
                stacklevel=3,
            )
            put(model, "lm_head.weight", head)
    return fingerprint_of(model.family, samples)


def sample_of(tensor: Tensor) -> bytes:
    """The shape of a tensor and about 64 of its values."""
    return (
        repr(list(tensor.shape)).encode()
        + tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu().numpy().tobytes()
    )


def fingerprint_of(family: str, samples: dict[str, bytes]) -> str:
    """A hash of the samples of all tensors of a model, by name (`sample_of`)."""
    digest = hashlib.sha256(family.encode())
    for name in sorted(samples):
        digest.update(name.encode() + samples[name])
    return digest.hexdigest()[:16]


def put(model: LanguageModel, name: str, tensor: Tensor) -> None:
    """model.<name> = Parameter(tensor), or this process's part of it if the model is sharded."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    before = getattr(module, leaf)
    tensor = part_of(tensor, before) if is_part(before) else tensor
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
