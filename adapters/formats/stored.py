"""The tensors of an adapter folder, read within bounds that the model gives."""

import importlib
import math
from pathlib import Path

from torch import Tensor

from adapters.attach import attach
from adapters.config import AdapterConfig
from adapters.tensors import Tensors
from files.errors import UserError
from files.reading import resolve_inside
from model.config import skeleton
from model.language import LanguageModel
from model.weights import safetensors, torch_tensors

WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
NAMES = 10_000  # texts and tables in one list of a configuration; a model has fewer modules
NUMBERS = 1_000_000  # numbers in one list, of tokens or layers; no vocabulary is larger
EXTRA = 2**26  # elements beside those that the model or the file accounts for


def read_tensors(folder: Path, most: float = math.inf) -> dict[str, Tensor]:
    """All tensors of an adapter folder, on the CPU; most: elements that they may have together.

    Raises UserError.
    """
    for name, read in ((WEIGHTS, safetensors), (OLD_WEIGHTS, torch_tensors)):
        path = resolve_inside(folder, name)
        if path.is_file():
            tensors: dict[str, Tensor] = {}
            for key, tensor in read(path, most):
                if key in tensors:
                    raise UserError(f"{path} holds a tensor twice")
                tensors[key] = tensor
                most -= tensor.numel()
                if most < 0:  # of views of one storage, or of a file with holes
                    raise UserError(f"{path} holds more values than the model has a place for")
            return tensors
    raise UserError(f"{folder / WEIGHTS} is missing: {folder} is no adapter folder")


def check_names(value, where: str) -> None:
    """Raise UserError for a list or a table with more names than a model has modules."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if not isinstance(inner, dict | list):
            continue
        count = len(inner) if isinstance(inner, dict) else sum(type(v) is not int for v in inner)
        if count > NAMES or len(inner) > NUMBERS:
            raise UserError(
                f"{where}: {key!r:.100} has {len(inner):,} entries, too many for a model"
            )
        check_names(inner, where)


def elements(model: LanguageModel) -> int:
    """How many elements an adapter of this model may have: twice the model's and EXTRA."""
    return 2 * sum(parameter.numel() for parameter in model.parameters()) + EXTRA


def check_size(model: LanguageModel, config: AdapterConfig, tensors: Tensors) -> None:
    """Raise UserError where the configuration asks for far more values than the file has.

    The adapter is attached to the model's shape, which takes no memory.
    """
    if any(part.kind == "fusion" for part in config.parts.values()):
        return  # its shapes follow from the model and the adapters that it is built on
    shape = skeleton(importlib.import_module(f"model.{model.family}"), model.config)
    most = 2 * sum(tensor.numel() for tensor in tensors.left.values()) + EXTRA
    try:
        attach(shape, config)
        asked = sum(t.numel() for k, t in shape.state_dict().items() if ".adapters." in k)
    except (RuntimeError, OverflowError, MemoryError):  # more than torch can count
        asked = 2**63
    if asked > most:
        raise UserError(
            f"{tensors.where} holds {(most - EXTRA) // 2:,} values, and its configuration asks for "
            f"an adapter of {asked:,}"
        )
