"""Base weights in 8 or 4 bits: which Linears, in which form, and how a folder says so.

    int8       weights in 8 bits (model/quantize/int8.py)
    llm-int8   the same, multiplied as integers: what goes into a Linear is rounded to 8 bits, too
    nf4        weights in 4 bits (model/quantize/nf4.py)

Quantised are the Linears inside the blocks; embeddings, head, norms and biases stay as they are.
"""

import json
from pathlib import Path

from torch import Tensor, nn

from files.errors import UserError, unknown
from files.reading import inside, read_json
from files.writing import make_folder, write_text
from model.language import LanguageModel
from model.quantize.int8 import Int8, LLMInt8
from model.quantize.linear import QuantizedLinear
from model.quantize.nf4 import NF4
from model.shards import check_empty, check_room, compare, copy_tokenizer, write_shards
from model.sites import Linear, Site, base_parameters

STORED_AS = {"int8": Int8, "llm-int8": LLMInt8, "nf4": NF4}


METHOD = "llm-adapters"  # in the quantization_config of config.json: stored as here


def quantization_of(raw: dict, where: str) -> tuple[str, str]:
    """(how the weights are stored, fingerprint of those they were made from) from the fields of a config.json; two empty texts of plain weights.

    Raises UserError for another program's quantisation.
    """
    said = raw.get("quantization_config")
    if said is None:
        return "", ""
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method != METHOD:
        raise UserError(
            f"{where}: quantization_config is that of {method!r:.60}, whose weights are not read here: "
            'give the model as it was before, and quantize="nf4" or "int8"'
        )
    how, fingerprint = said.get("how"), said.get("fingerprint")
    if (
        how not in STORED_AS
        or not isinstance(fingerprint, str)
        or not fingerprint
        or said.keys() - {"quant_method", "how", "fingerprint"}
    ):
        raise UserError(
            f"{where}: quantization_config should hold how ({', '.join(STORED_AS)}), fingerprint and quant_method alone: {said!r:.200}"
        )
    return how, fingerprint


def how_stored(asked: str, stored: str, where: str) -> str:
    """The form of a model whose files have the form `stored` ("" for plain weights), when `asked` is wanted. Raises UserError when that cannot be."""
    if asked and stored and STORED_AS[stored].layout is not STORED_AS[asked].layout:
        raise UserError(
            f"{where} is stored as {stored} and cannot become {asked}: leave quantize out, or load what it was made from"
        )
    return asked or stored


def quantize_skeleton(model: LanguageModel, how: str) -> None:
    """Turn the Linears inside the blocks of a model on the meta device into quantised ones without values.

    Raises UserError for an unknown name.
    """
    if how not in STORED_AS:
        raise unknown("quantization", how, STORED_AS)
    for path, linear in [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is Linear and path.startswith(model.blocks_at + ".")
    ]:
        model.set_submodule(path, STORED_AS[how](linear))
    model.quantize = how


def quantized(model: LanguageModel) -> dict[str, QuantizedLinear]:
    """The quantised Linears by their path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def quantized_weights(module: nn.Module) -> int:
    """How many weights are stored quantised: no parameters to torch, and parameters of the model all the same."""
    return sum(
        one.in_features * one.out_features
        for one in module.modules()
        if isinstance(one, QuantizedLinear)
    )


def dequantize(model: LanguageModel) -> None:
    """Turn the quantised Linears into plain ones with the weights they stand for, in the model's dtype, one at a time; adapters stay on them.

    Their rounding stays, too. The fingerprint is kept: the answers are the same.
    """
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
    """Write a quantised model into `folder`, new or empty, for load_model, which gives it back to the bit; returns the files.

    What was written is read again and compared. Raises UserError, before anything is written: for a model that is not quantised, while an adapter is
    on, for a folder that holds something, and for a disk without the room.
    """
    folder = Path(folder)
    if not model.quantize:
        raise UserError('the model is not quantised: load it with quantize="nf4" or "int8"')
    if any(module.active for module in model.modules() if isinstance(module, Site)):
        raise UserError(
            "an adapter is on: save_quantized writes the base alone; switch it off with use(model, [])"
        )
    check_empty(folder)
    tensors: dict[str, Tensor] = dict(base_parameters(model))
    tensors |= {
        f"{path}.{leaf}": getattr(linear, leaf)
        for path, linear in quantized(model).items()
        for leaf in linear.layout()
    }
    check_room(folder, tensors)
    raw = read_json(inside(model.folder, "config.json"))
    raw["quantization_config"] = {
        "quant_method": METHOD,
        "how": model.quantize,
        "fingerprint": model.fingerprint,
    }
    dtype = str(model.input_embedding.weight.dtype).removeprefix("torch.")
    raw |= {key: dtype for key in ("torch_dtype", "dtype") if key in raw}
    if (
        model.config.tie_word_embeddings != model.tied
    ):  # the source said true and held two different tensors
        raw["tie_word_embeddings"] = model.tied
    make_folder(folder)
    try:
        write_text(folder / "config.json", json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        copy_tokenizer(model.folder, folder)
        write_shards(folder, tensors, shard_bytes)
        compare(folder, tensors)
    except BaseException:  # half a model would be in the way of the next try
        for path in folder.iterdir():
            path.unlink()
        raise
    return sorted(folder.iterdir())
