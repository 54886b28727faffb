"""Base weights in 8 or 4 bits: quantising a model, saving it, and reading such folders.

    int8       weights in 8 bits (model/quantize/int8.py)
    llm-int8   the same, with the input of a Linear in 8 bits, too: a product of integers
    nf4        weights in 4 bits (model/quantize/nf4.py)

Only the Linears inside the blocks are quantised: not embeddings, head, norms and biases.
"""

import json
from pathlib import Path

from torch import Tensor, nn

from files.errors import UserError, unknown
from files.reading import read_json, resolve_inside
from files.writing import make_folder, write_text
from model.language import LanguageModel
from model.quantize.int8 import Int8, LLMInt8
from model.quantize.linear import QuantizedLinear
from model.quantize.nf4 import NF4
from model.shards import check_empty, check_room, compare, copy_tokenizer, write_shards
from model.sites import Linear, Site, base_parameters

STORED_AS = {"int8": Int8, "llm-int8": LLMInt8, "nf4": NF4}
METHOD = "llm-adapters"  # quant_method of such folders, in quantization_config of config.json


def quantization_of(raw: dict, where: str) -> tuple[str, str]:
    """(name in STORED_AS, fingerprint of the weights before quantisation) from a config.json.

    raw: its fields. ("", "") for plain weights. Raises UserError for other quantisations.
    """
    table = raw.get("quantization_config")
    if table is None:
        return "", ""
    method = table.get("quant_method") if isinstance(table, dict) else table
    if method != METHOD:
        raise UserError(
            f"{where}: quantization_config is that of {method!r:.60}, whose weights are not read "
            'here: give the model as it was before, and quantize="nf4" or "int8"'
        )
    stored, fingerprint = table.get("how"), table.get("fingerprint")
    only = table.keys() <= {"quant_method", "how", "fingerprint"}
    if stored not in STORED_AS or not isinstance(fingerprint, str) or not fingerprint or not only:
        raise UserError(
            f"{where}: quantization_config should hold how ({', '.join(STORED_AS)}), fingerprint "
            f"and quant_method, and nothing else: {table!r:.200}"
        )
    return stored, fingerprint


def resolve_quantization(asked: str, stored: str, where: str) -> str:
    """The quantisation to load with: `asked`, or that of the files, `stored`; "" is none.

    Raises UserError if files that are stored in one cannot be loaded in the other.
    """
    if asked and stored and STORED_AS[stored].layout is not STORED_AS[asked].layout:
        raise UserError(
            f"{where} is stored as {stored} and cannot become {asked}: leave quantize out, or load "
            "the model that it was made from"
        )
    return asked or stored


def quantize_skeleton(model: LanguageModel, name: str) -> None:
    """Make the Linears inside the blocks of a model on the meta device quantised, without values.

    Raises UserError for an unknown name.
    """
    if name not in STORED_AS:
        raise unknown("quantization", name, STORED_AS)
    for path, module in list(model.named_modules()):
        if type(module) is Linear and path.startswith(model.blocks_at + "."):
            model.set_submodule(path, STORED_AS[name](module))
    model.quantize = name


def quantized(model: LanguageModel) -> dict[str, QuantizedLinear]:
    """The quantised Linears by their path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def quantized_weights(module: nn.Module) -> int:
    """The number of weights that are stored quantised, which torch does not count as parameters."""
    linears = (m for m in module.modules() if isinstance(m, QuantizedLinear))
    return sum(linear.in_features * linear.out_features for linear in linears)


def dequantize(model: LanguageModel) -> None:
    """Make the quantised Linears plain ones, one at a time, with the same rounded weights in the
    model's dtype, the same adapters and the same fingerprint."""
    for path, linear in quantized(model).items():
        plain = Linear.__new__(Linear)
        Site.__init__(plain, linear.in_features, linear.out_features)
        plain.weight, plain.bias = nn.Parameter(linear.weight, requires_grad=False), linear.bias
        plain.adapters, plain.active = linear.adapters, linear.active
        model.set_submodule(path, plain.train(linear.training))
    model.quantize = ""


def save_quantized(
    model: LanguageModel, folder: str | Path, shard_bytes: int = 5_000_000_000
) -> list[Path]:
    """Write a quantised model into a new or empty `folder` for `load_model`; returns the files.

    The files are read again and compared bit by bit. Raises UserError, before anything is written,
    for a model that is not quantised, an active adapter, a folder that holds something and a full
    disk.
    """
    folder = Path(folder)
    if not model.quantize:
        raise UserError('the model is not quantised: load it with quantize="nf4" or "int8"')
    if any(module.active for module in model.modules() if isinstance(module, Site)):
        raise UserError(
            "an adapter is on: save_quantized writes only the base; switch it off with "
            "use(model, [])"
        )
    check_empty(folder)
    tensors: dict[str, Tensor] = dict(base_parameters(model))
    tensors |= {
        f"{path}.{leaf}": getattr(linear, leaf)
        for path, linear in quantized(model).items()
        for leaf in linear.layout()
    }
    check_room(folder, tensors)
    raw = read_json(resolve_inside(model.folder, "config.json"))
    raw["quantization_config"] = {
        "quant_method": METHOD,
        "how": model.quantize,
        "fingerprint": model.fingerprint,
    }
    dtype = str(model.input_embedding.weight.dtype).removeprefix("torch.")
    raw |= {key: dtype for key in ("torch_dtype", "dtype") if key in raw}
    if model.config.tie_word_embeddings != model.tied:  # true, but with two different tensors
        raw["tie_word_embeddings"] = model.tied
    make_folder(folder)
    try:
        write_text(folder / "config.json", json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        copy_tokenizer(model.folder, folder)
        write_shards(folder, tensors, shard_bytes)
        compare(folder, tensors)
    except BaseException:  # the next attempt needs an empty folder
        for path in folder.iterdir():
            path.unlink()
        raise
    return sorted(folder.iterdir())
