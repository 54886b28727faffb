"""PEFT's adapter files -> our configuration and tensors (of PEFT 0.21 and what came before).

What PEFT puts into one adapter may be several parts of ours: a LoRA beside whole modules
(modules_to_save), biases, and rows of the embedding.
"""

import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adapters.base import PREFIX
from adapters.config import METHODS, AdapterConfig, resolve
from adapters.formats.peft_beside import more_parts, read_tokens
from adapters.formats.peft_copies import base_copies, check_saved
from adapters.formats.peft_defaults import default_feedforward, default_targets
from adapters.formats.peft_fields import Fields, File, Whole, read_fields
from adapters.formats.peft_options import READ, read_oft, read_options
from adapters.formats.peft_places import (
    Absent,
    absent_names,
    fits,
    fitting,
    no_such,
    part,
    pass_over,
    peft_modules,
    placement,
    saved,
    targeted,
)
from adapters.methods.adalora import AdaLoRA
from adapters.methods.prefix import KEY as PROMPT
from adapters.methods.vera import A_KEY, B_KEY, VeRA, projections
from files.errors import UserError
from files.typed import typed
from model.language import LanguageModel


def read(
    model: LanguageModel, raw: dict, tensors: dict[str, Tensor], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """A PEFT adapter_config.json and the tensors of the file `where` -> ours.

    Raises UserError for an adapter type, field or module that is not known, for values of the wrong
    type, and for sizes the tensors do not have.
    """
    peft_type, fields = read_fields(raw, str(Path(where).with_name("adapter_config.json")))
    file = File(model, fields, dict(tensors), where)
    if peft_type in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return resolve(soft(peft_type, file)), file.tensors
    file.paths, absent = chosen(model, fields, peft_type)
    table = READERS[peft_type](file)
    kind = table["kind"]
    parts, owners = more_parts(file)
    copies = base_copies(file, owners, kind)
    mine = (A_KEY, B_KEY, *(f"{PREFIX}{path}." for path in file.paths))
    pass_over(model, absent, file.tensors, (*mine, *owners), fields.where)
    for key in owners:
        if key not in file.tensors:
            raise file.error(
                f"tensor {key!r} is missing, which modules_to_save, bias or "
                "trainable_token_indices ask for"
            )
    check_saved(file, owners)
    if not parts and not copies:
        return resolve(table), file.tensors
    parts = {kind: table} | parts
    if copies:  # before the method, which works on what they make of the base
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in copies))
        parts = {"base": {"kind": "full", **placement(model, modules)}} | parts
    owners = {key: f"{kind}:{key}" for key in file.tensors if key.startswith(mine)} | owners
    tensors = {owners.get(key, key): tensor for key, tensor in file.tensors.items()}
    return resolve(parts), tensors | {f"base:{PREFIX}{name}": copy for name, copy in copies.items()}


def chosen(model: LanguageModel, fields: Fields, peft_type: str) -> tuple[list[str], Absent]:
    """(the paths of the modules that get an adapter, the names that the model lacks).

    Raises UserError if there is no such module.
    """
    targets, layers = fields.target_modules, fields.layers_to_transform
    if peft_type == "TRAINABLE_TOKENS" and not targets:
        return [model.outer_sites["embed"]], []
    if targets is None:
        targets = default_targets(peft_type, model)
    if not targets:
        raise fields.error("target_modules", "names no module")
    if layers is not None and isinstance(targets, str):
        raise fields.error(
            "layers_to_transform", "does not go with a target_modules that is an expression"
        )
    absent = absent_names(model, targets, fields.modules_to_save, layers)
    exclude, whole = fields.exclude_modules, saved(model, fields.modules_to_save)
    paths = targeted(model, targets, layers, fields.layers_pattern)
    paths = [path for path in paths if path not in whole and not (exclude and fits(exclude, path))]
    if not paths:
        lacking = [(field, n) for field, n in absent.items() if field != "modules_to_save"]
        restricted = "leaves no module after the fields that restrict it"
        raise no_such(model, *lacking[0]) if lacking else fields.error("target_modules", restricted)
    return paths, absent


def check_rows(file: File, key: str, rows: int, says: str) -> None:
    """Raises UserError if a tensor has not these rows, before anything of that size is made."""
    shape = file.tensors[key].shape if key in file.tensors else (rows,)
    if not shape or shape[0] != rows:
        raise file.error(
            f"tensor {key!r} is {list(shape)}, the configuration asks for {rows} rows "
            f"({says} = {rows})"
        )


def read_lora(file: File) -> dict:
    fields, modules = file.fields, peft_modules(file.model)
    patterns = fields.rank_pattern, fields.alpha_pattern
    options = {}
    several = None  # a module that patterns with different values fit
    for path in file.paths:
        embedding = modules[path].kind == "embedding"
        if embedding and fields.use_dora:
            raise fields.error("use_dora", f"with an embedding ({path}) is not known here")
        ranks, alphas = (fitting(pattern, path) for pattern in patterns)
        if any(value != values[0] for values in (ranks, alphas) for value in values):
            several = several or path
        r = typed([*ranks, fields.r or 8][0], Whole, fields.where, "rank_pattern")
        leaf = "lora_embedding_A" if embedding else "lora_A.weight"
        check_rows(file, f"{PREFIX}{path}.{leaf}", r, "r")
        options[path] = {
            "r": r,
            "alpha": [*alphas, fields.lora_alpha][0],
            "rslora": fields.use_rslora,
            "bias": fields.lora_bias,
            "dropout": 0.0 if embedding else fields.lora_dropout,  # PEFT drops nothing there
        }
    if several:
        warnings.warn(
            f"{fields.where}: several patterns of rank_pattern or alpha_pattern fit {several}; the "
            "first one counts, as in PEFT, which may have changed their order when it saved",
            stacklevel=4,
        )
    return part(file.model, "dora" if fields.use_dora else "lora", options)


def read_adalora(file: File) -> dict:
    """The rank of every site is init_r; what PEFT cut away is zero here, the scale as it was."""
    fields, tensors = file.fields, file.tensors
    init_r, steps = fields.init_r, fields.total_step
    if fields.lora_alpha <= 0:
        raise fields.error("lora_alpha", "should be positive")
    for name, mask in fields.rank_pattern.items():
        path = name.removeprefix(PREFIX).removesuffix(".default").removesuffix(".lora_E")
        if path not in file.paths:
            raise UserError(
                f"{fields.where}: rank_pattern names {name!r:.200}, which is none of the modules "
                "that have an adapter"
            )
        bools = isinstance(mask, list) and all(type(keep) is bool for keep in mask)
        if not bools or len(mask) != init_r:
            raise UserError(
                f"{fields.where}: rank_pattern[{name!r:.200}] should be init_r = {init_r} times "
                "true or false"
            )
        for leaf in ("lora_A", "lora_E", "lora_B"):
            key = f"{PREFIX}{path}.{leaf}"
            if key in tensors:
                tensors[key] = put_back(tensors[key], mask, leaf == "lora_B", key, file)
    for path in file.paths:
        check_rows(file, f"{PREFIX}{path}.lora_A", init_r, "init_r")
    options = {ours: getattr(fields, theirs) for ours, theirs in AdaLoRA.peft.items()}
    options["target_r"] = min(fields.target_r, init_r)
    options |= {"warmup": fields.tinit / steps, "final": fields.tfinal / steps}
    return part(file.model, "adalora", dict.fromkeys(file.paths, options))


def put_back(tensor: Tensor, mask: list[bool], columns: bool, key: str, file: File) -> Tensor:
    """The tensor with zeros in the rows (or columns) where the mask is false."""
    left = torch.tensor(mask)
    if tensor.dim() != 2 or tensor.shape[int(columns)] != left.sum():
        raise file.error(
            f"tensor {key!r} is {list(tensor.shape)}, rank_pattern leaves a rank of "
            f"{int(left.sum())} there"
        )
    rows = tensor.T if columns else tensor
    whole = rows.new_zeros(len(left), rows.shape[1])
    whole[left] = rows
    return whole.T if columns else whole


def read_vera(file: File) -> dict:
    """Without save_projection, the projections are made again from their seed."""
    fields, tensors, paths = file.fields, file.tensors, file.paths
    options = {ours: getattr(fields, theirs) for ours, theirs in VeRA.peft.items()}
    options["r"] = r = fields.r or 256
    for path in paths:
        key = f"{PREFIX}{path}.vera_lambda_d"
        if key not in tensors:  # nothing else says that r is as large as the projections made of it
            raise file.error(f"tensor {key!r} is missing")
        check_rows(file, key, r, "r")
    if not fields.save_projection:
        if A_KEY in tensors or B_KEY in tensors:
            raise fields.error(
                "save_projection", "is false, and the file has projections: which ones count?"
            )
        sites = [file.model.get_submodule(path) for path in paths]
        tensors[A_KEY], tensors[B_KEY] = projections(r, options["seed"], sites)
    return part(file.model, "vera", dict.fromkeys(paths, options))


def read_ia3(file: File) -> dict:
    inner = file.fields.feedforward_modules
    inner = default_feedforward(file.model) if inner is None else inner or []

    def scales(path: str) -> str:  # PEFT compares the ends of names here without the dot
        text = isinstance(inner, str)
        fit = fits(inner, path) if text else any(path.endswith(name) for name in inner)
        return "input" if fit else "output"

    return part(file.model, "ia3", {path: {"scales": scales(path)} for path in file.paths})


READERS = {
    "LORA": read_lora,
    "ADALORA": read_adalora,
    "VERA": read_vera,
    "IA3": read_ia3,
    "OFT": read_oft,
    **{METHODS[kind].peft_type: partial(read_options, kind) for kind in READ},
    "TRAINABLE_TOKENS": read_tokens,
}


def soft(peft_type: str, file: File) -> dict:
    """The table of a soft prompt or prefix.

    The networks that made them are not in PEFT's files, so P-tuning is a plain soft prompt here.
    """
    fields = file.fields
    length = fields.num_virtual_tokens
    if length is None:
        raise fields.error("num_virtual_tokens", "should be a whole number from 1")
    if fields.num_transformer_submodules != 1:
        raise fields.error("num_transformer_submodules", "is for encoder-decoder models")
    check_rows(file, PROMPT, length, "num_virtual_tokens")
    if peft_type == "PREFIX_TUNING":
        return {"kind": "prefix", "sites": ["kv"], "length": length, "scale": 1.0}
    return {"kind": "prompt", "sites": ["embed"], "length": length, "scale": 1.0, "init": "random"}
