"""PEFT's adapter files -> our configuration and tensors (of PEFT 0.21 and what came before).

What PEFT puts into one adapter may be several parts of ours: a LoRA beside whole modules (modules_to_save), biases, and rows of the embedding.
"""

import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.base import PREFIX
from adapters.config import AdapterConfig, resolve
from adapters.formats.peft_beside import more_parts, read_tokens
from adapters.formats.peft_copies import base_copies, check_saved
from adapters.formats.peft_defaults import default_feedforward, default_targets
from adapters.formats.peft_fields import FIELDS, LARGEST, MERGE, Fields
from adapters.formats.peft_places import (
    Absent,
    absent_layers,
    absent_saved,
    absent_targets,
    fits,
    fitting,
    overrides,
    pass_over,
    peft_modules,
    placement,
    saved,
    targeted,
)
from adapters.methods.prefix import KEY as PROMPT
from adapters.methods.vera import A_KEY, B_KEY, projection
from files.errors import UserError


def read(
    model: nn.Module, raw: dict, tensors: dict[str, Tensor], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """A PEFT adapter_config.json and the tensors beside it -> (configuration, tensors by our keys). `where` is the file of the tensors.

    Raises UserError for an adapter type, field or module that is not known, for values of the wrong type, and for sizes the tensors do not have.
    """
    fields = Fields(raw, str(Path(where).with_name("adapter_config.json")))
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(
            f"{fields.where}: peft_type {kind!r:.100} is not known here; there is: "
            f"{', '.join(FIELDS)}. Where PEFT can merge it, {MERGE}"
        )
    fields.check(kind)
    if kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return resolve(**soft(kind, fields, tensors, where)), tensors
    paths, absent = chosen(model, fields, kind)
    table, tensors = READERS[kind](model, fields, paths, dict(tensors), where)
    parts, owners = more_parts(model, fields, paths)
    tensors, copies = base_copies(model, tensors, owners, paths, table["kind"], where)
    mine = (A_KEY, B_KEY, *(f"{PREFIX}{path}." for path in paths))
    pass_over(model, absent, tensors, (*mine, *owners), fields.where)
    for key in owners:
        if key not in tensors:
            raise UserError(
                f"{where}: tensor {key!r} is missing, which modules_to_save, bias or trainable_token_indices ask for"
            )
    check_saved(model, tensors, owners, where)
    if not parts and not copies:
        return resolve(**table), tensors
    parts = {table["kind"]: table} | parts
    if copies:  # in front of the method, which works on what they make of the base
        places = placement(model, list(dict.fromkeys(name.rpartition(".")[0] for name in copies)))
        parts = {"base": {"kind": "full", **places}} | parts
    owners = {key: f"{table['kind']}:{key}" for key in tensors if key.startswith(mine)} | owners
    tensors = {owners.get(key, key): tensor for key, tensor in tensors.items()}
    tensors |= {f"base:{PREFIX}{name}": copy for name, copy in copies.items()}
    return resolve(**parts), tensors


def chosen(model: nn.Module, fields: Fields, kind: str) -> tuple[list[str], list[Absent]]:
    """(the paths of the modules that get an adapter, the names that the model lacks).

    Raises UserError where there is none.
    """
    targets = fields.names("target_modules")
    if kind == "TRAINABLE_TOKENS" and targets is None:
        return [model.outer_sites["embed"]], []
    if fields.raw.get("target_modules") is None:
        targets = default_targets(kind, model)
    if targets is None:
        raise fields.error("target_modules", "names no module")
    layers = fields.raw.get("layers_to_transform")
    if layers is not None:
        if isinstance(targets, str):
            raise fields.error(
                "layers_to_transform", "does not go with a target_modules that is an expression"
            )
        for layer in layers if isinstance(layers, list) else [layers]:
            fields.checked_whole("layers_to_transform", layer, low=-LARGEST)
    whole = fields.names("modules_to_save", text=False) or []
    absent = [
        Absent("target_modules", absent_targets(model, targets)),
        Absent("modules_to_save", absent_saved(model, whole)),
        Absent("layers_to_transform", absent_layers(model, layers)),
    ]
    exclude, whole = fields.names("exclude_modules"), saved(model, whole)
    paths = targeted(model, targets, layers, fields.names("layers_pattern"))
    paths = [path for path in paths if path not in whole and not (exclude and fits(exclude, path))]
    if not paths:
        lacking = [one for one in absent if one.names and one.field != "modules_to_save"]
        restricted = "leaves no module behind the fields that restrict it"
        raise lacking[0].unknown(model) if lacking else fields.error("target_modules", restricted)
    return paths, absent


def part(model: nn.Module, kind: str, options: dict[str, dict]) -> dict:
    """The table of a method at these places, path -> options there: the most frequent ones, and where the others are."""
    most = dict(Counter(tuple(one.items()) for one in options.values()).most_common(1)[0][0])
    place = placement(model, list(options))
    changes = {
        path: {key: value for key, value in one.items() if value != most[key]}
        for path, one in options.items()
    }
    different = overrides(model, changes, place["sites"])
    return {"kind": kind, **place, **most} | ({"overrides": different} if different else {})


def check_rows(where: str, tensors: dict[str, Tensor], key: str, rows: int, says: str) -> None:
    """Raises UserError where a tensor has another count of rows than the configuration says, before anything of that size is made."""
    if key in tensors and (tensors[key].dim() == 0 or len(tensors[key]) != rows):
        raise UserError(
            f"{where}: tensor {key!r} is {list(tensors[key].shape)}, the configuration asks for {rows} rows ({says} = {rows})"
        )


def read_lora(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    modules = peft_modules(model)
    ranks, alphas = fields.table("rank_pattern"), fields.table("alpha_pattern")
    r, alpha, dropout = (
        fields.whole("r", 8),
        fields.number("lora_alpha", 8),
        fields.number("lora_dropout", 0.0),
    )
    dora, bias = fields.flag("use_dora"), fields.flag("lora_bias")
    options = {}
    for path in paths:
        embedding = modules[path].kind == "embedding"
        if embedding and dora:
            raise fields.error("use_dora", f"with an embedding ({path}) is not known here")
        here = fields.checked_whole("rank_pattern", [*fitting(ranks, path), r][0])
        check_rows(
            where,
            tensors,
            f"{PREFIX}{path}.lora_embedding_A" if embedding else f"{PREFIX}{path}.lora_A.weight",
            here,
            "r",
        )
        options[path] = {
            "r": here,
            "alpha": fields.checked_number("alpha_pattern", [*fitting(alphas, path), alpha][0]),
            "rslora": fields.flag("use_rslora"),
            "bias": bias,
            "dropout": 0.0 if embedding else dropout,  # PEFT does not drop anything there
        }
    several = next(
        (
            path
            for path in paths
            for table in (ranks, alphas)
            if any(value != fitting(table, path)[0] for value in fitting(table, path))
        ),
        None,
    )
    if several:
        warnings.warn(
            f"{fields.where}: several patterns of rank_pattern or alpha_pattern fit {several}; the first one counts, as in PEFT, which may have "
            "changed their order when it saved",
            stacklevel=4,
        )
    return part(model, "dora" if dora else "lora", options), tensors


def read_adalora(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    """The rank of every site is init_r. What PEFT cut away is not in the file; here it is zero, and the scale stays as it was."""
    init_r, steps = fields.whole("init_r", 12), fields.whole("total_step", 1000)
    alpha = fields.number("lora_alpha", 8)
    if alpha <= 0:
        raise fields.error("lora_alpha", "should be positive")
    kept = fields.table("rank_pattern")
    for name, mask in kept.items():
        path = name.removeprefix(PREFIX).removesuffix(".default").removesuffix(".lora_E")
        if path not in paths:
            raise UserError(
                f"{fields.where}: rank_pattern names {name!r:.200}, which is none of the modules that have an adapter"
            )
        if (
            not isinstance(mask, list)
            or len(mask) != init_r
            or not all(type(one) is bool for one in mask)
        ):
            raise UserError(
                f"{fields.where}: rank_pattern[{name!r:.200}] should be init_r = {init_r} times true or false"
            )
        left = torch.tensor(mask)
        for leaf in ("lora_A", "lora_E", "lora_B"):
            key = f"{PREFIX}{path}.{leaf}"
            if key in tensors:
                tensors[key] = put_back(
                    tensors[key], left, columns=leaf == "lora_B", key=key, where=where
                )
    for path in paths:
        check_rows(where, tensors, f"{PREFIX}{path}.lora_A", init_r, "init_r")
    options = {
        "init_r": init_r,
        "target_r": min(fields.whole("target_r", 8), init_r),
        "alpha": alpha,
        "dropout": fields.number("lora_dropout", 0.0),
        "warmup": fields.whole("tinit", 0, low=0) / steps,
        "final": fields.whole("tfinal", 0, low=0) / steps,
        "every": fields.whole("deltaT", 1),
        "beta1": fields.number("beta1", 0.85),
        "beta2": fields.number("beta2", 0.85),
        "orthogonality": fields.number("orth_reg_weight", 0.5),
    }
    return part(model, "adalora", dict.fromkeys(paths, options)), tensors


def put_back(tensor: Tensor, left: Tensor, columns: bool, key: str, where: str) -> Tensor:
    """The tensor with zeros in the rows (or columns) that are not `left`."""
    if tensor.dim() != 2 or tensor.shape[int(columns)] != left.sum():
        raise UserError(
            f"{where}: tensor {key!r} is {list(tensor.shape)}, rank_pattern leaves a rank of {int(left.sum())} there"
        )
    rows = tensor.T if columns else tensor
    whole = rows.new_zeros(len(left), rows.shape[1])
    whole[left] = rows
    return whole.T if columns else whole


def read_vera(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    """Without save_projection, the projections are made again from their seed."""
    r, seed = fields.whole("r", 256), fields.whole("projection_prng_key", 0, low=0, high=2**63 - 1)
    for path in paths:
        check_rows(where, tensors, f"{PREFIX}{path}.vera_lambda_d", r, "r")
    if not fields.flag("save_projection", True):
        if A_KEY in tensors or B_KEY in tensors:
            raise fields.error(
                "save_projection", "is false, and the file has projections: which ones count?"
            )
        sites, generator = (
            [model.get_submodule(path) for path in paths],
            torch.Generator().manual_seed(seed),
        )
        tensors[A_KEY] = projection((r, max(site.in_features for site in sites)), generator)
        tensors[B_KEY] = projection((max(site.out_features for site in sites), r), generator)
    options = {
        "r": r,
        "seed": seed,
        "dropout": fields.number("vera_dropout", 0.0),
        "d_start": fields.number("d_initial", 0.1),
    }
    return part(model, "vera", dict.fromkeys(paths, options)), tensors


def read_ia3(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    inner = fields.names("feedforward_modules") or []
    if fields.raw.get("feedforward_modules") is None:
        inner = default_feedforward(model)

    def scales_input(path: str) -> bool:  # PEFT compares the ends of names here without the dot
        return (
            fits(inner, path)
            if isinstance(inner, str)
            else any(path.endswith(name) for name in inner)
        )

    return part(
        model,
        "ia3",
        {path: {"scales": "input" if scales_input(path) else "output"} for path in paths},
    ), tensors


def read_ln_tuning(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    return part(model, "ln_tuning", {path: {} for path in paths}), tensors


READERS = {
    "LORA": read_lora,
    "ADALORA": read_adalora,
    "VERA": read_vera,
    "IA3": read_ia3,
    "LN_TUNING": read_ln_tuning,
    "TRAINABLE_TOKENS": read_tokens,
}


def soft(kind: str, fields: Fields, tensors: dict[str, Tensor], where: str) -> dict:
    """The table of a soft prompt or prefix. The networks that made them are not in PEFT's files, so that P-tuning is a plain soft prompt here."""
    length = fields.whole("num_virtual_tokens")
    if fields.whole("num_transformer_submodules", 1) != 1:
        raise fields.error("num_transformer_submodules", "is for encoder-decoder models")
    check_rows(where, tensors, PROMPT, length, "num_virtual_tokens")
    if kind == "PREFIX_TUNING":
        return {"kind": "prefix", "sites": ["kv"], "length": length, "scale": 1.0}
    return {"kind": "prompt", "sites": ["embed"], "length": length, "scale": 1.0, "init": "random"}
