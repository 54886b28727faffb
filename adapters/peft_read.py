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
from adapters.peft_fields import FIELDS, Fields
from adapters.peft_places import fits, fitting, overrides, peft_modules, placement, saved, targeted, with_bias
from adapters.prefix import KEY as PROMPT
from adapters.vera import A_KEY, B_KEY, projection
from model.errors import UserError

INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # of LoRA, with which the base stays as it was


def read(model: nn.Module, raw: dict, tensors: dict[str, Tensor], where: str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """A PEFT adapter_config.json and the tensors beside it -> (configuration, tensors by our keys). `where` is the file of the tensors.

    Raises UserError for an adapter type, field or module that is not known, for values of the wrong type, and for sizes the tensors do not have.
    """
    fields = Fields(raw, str(Path(where).with_name("adapter_config.json")))
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(f"{fields.where}: peft_type {kind!r:.100} is not known here; there is: {', '.join(FIELDS)}")
    fields.check(kind)
    if kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return resolve(**soft(kind, fields, tensors, where)), tensors
    paths = chosen(model, fields)
    table, tensors = READERS[kind](model, fields, paths, dict(tensors), where)
    parts, owners = more_parts(model, fields, paths)
    tensors = without_copies(model, tensors, owners, where)
    if not parts:
        return resolve(**table), tensors
    for key in owners:
        if key not in tensors:
            raise UserError(f"{where}: tensor {key!r} is missing, which modules_to_save, bias or trainable_token_indices ask for")
    main, mine = table["kind"], tuple([A_KEY, B_KEY] + [f"{PREFIX}{path}." for path in paths])
    owners = {key: f"{main}:{key}" for key in tensors if key.startswith(mine)} | owners
    return resolve(**({main: table} | parts)), {owners.get(key, key): tensor for key, tensor in tensors.items()}


def chosen(model: nn.Module, fields: Fields) -> list[str]:
    """The paths of the modules that get an adapter. Raises UserError."""
    targets = fields.names("target_modules")
    if targets is None:
        raise fields.error("target_modules", "names no module")
    layers = fields.raw.get("layers_to_transform")
    if layers is not None:
        if isinstance(targets, str):
            raise fields.error("layers_to_transform", "does not go with a target_modules that is an expression")
        for layer in layers if isinstance(layers, list) else [layers]:
            fields.checked_whole("layers_to_transform", layer, low=0)
    paths = targeted(model, targets, layers, fields.names("layers_pattern"))
    exclude, whole = fields.names("exclude_modules"), saved(model, fields.names("modules_to_save", text=False) or [])
    paths = [path for path in paths if path not in whole and not (exclude and fits(exclude, path))]
    if not paths:
        raise fields.error("target_modules", "leaves no module behind the fields that restrict it")
    return paths


def part(model: nn.Module, kind: str, options: dict[str, dict]) -> dict:
    """The table of a method at these places, path -> options there: the most frequent ones, and where the others are."""
    most = dict(Counter(tuple(one.items()) for one in options.values()).most_common(1)[0][0])
    place = placement(model, list(options))
    changes = {path: {key: value for key, value in one.items() if value != most[key]} for path, one in options.items()}
    different = overrides(model, changes, place["sites"])
    return {"kind": kind, **place, **most} | ({"overrides": different} if different else {})


def check_rows(where: str, tensors: dict[str, Tensor], key: str, rows: int, says: str) -> None:
    """Raises UserError where a tensor has another count of rows than the configuration says, before anything of that size is made."""
    if key in tensors and (tensors[key].dim() == 0 or len(tensors[key]) != rows):
        raise UserError(f"{where}: tensor {key!r} is {list(tensors[key].shape)}, the configuration asks for {rows} rows ({says} = {rows})")


def read_lora(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    modules = peft_modules(model)
    init = fields.raw.get("init_lora_weights")
    if init not in INITS:
        raise fields.error("init_lora_weights", "altered the weights of the base: save the adapter with PEFT's path_initial_model_for_weight_conversion")
    ranks, alphas = fields.table("rank_pattern"), fields.table("alpha_pattern")
    r, alpha, dropout = fields.whole("r", 8), fields.number("lora_alpha", 8), fields.number("lora_dropout", 0.0)
    dora, bias = fields.flag("use_dora"), fields.flag("lora_bias")
    options = {}
    for path in paths:
        embedding = modules[path].kind == "embedding"
        if embedding and dora:
            raise fields.error("use_dora", f"with an embedding ({path}) is not known here")
        here = fields.checked_whole("rank_pattern", [*fitting(ranks, path), r][0])
        check_rows(where, tensors, f"{PREFIX}{path}.lora_embedding_A" if embedding else f"{PREFIX}{path}.lora_A.weight", here, "r")
        options[path] = {
            "r": here, "alpha": fields.checked_number("alpha_pattern", [*fitting(alphas, path), alpha][0]), "rslora": fields.flag("use_rslora"),
            "bias": bias, "dropout": 0.0 if embedding else dropout,  # PEFT does not drop anything there
        }
    several = next((path for path in paths for table in (ranks, alphas) if any(value != fitting(table, path)[0] for value in fitting(table, path))), None)
    if several:
        warnings.warn(f"{fields.where}: several patterns of rank_pattern or alpha_pattern fit {several}; the first one counts, as in PEFT, which may have "
                      "changed their order when it saved", stacklevel=4)
    return part(model, "dora" if dora else "lora", options), tensors


def read_adalora(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    """The rank of every site is init_r. What PEFT cut away is not in the file; here it is zero, and the scale stays as it was."""
    init_r, steps = fields.whole("init_r", 12), fields.whole("total_step", 1000)
    alpha = fields.number("lora_alpha", 8)
    if alpha <= 0:
        raise fields.error("lora_alpha", "should be positive")
    kept = fields.table("rank_pattern")
    for name, mask in kept.items():
        path = name.removesuffix(".lora_E")
        if path not in paths:
            raise UserError(f"{fields.where}: rank_pattern names {name!r:.200}, which is none of the modules that have an adapter")
        if not isinstance(mask, list) or len(mask) != init_r or not all(type(one) is bool for one in mask):
            raise UserError(f"{fields.where}: rank_pattern[{name!r:.200}] should be init_r = {init_r} times true or false")
        left = torch.tensor(mask)
        for leaf in ("lora_A", "lora_E", "lora_B"):
            key = f"{PREFIX}{path}.{leaf}"
            if key in tensors:
                tensors[key] = put_back(tensors[key], left, columns=leaf == "lora_B", key=key, where=where)
    for path in paths:
        check_rows(where, tensors, f"{PREFIX}{path}.lora_A", init_r, "init_r")
    options = {
        "init_r": init_r, "target_r": min(fields.whole("target_r", 8), init_r), "alpha": alpha, "dropout": fields.number("lora_dropout", 0.0),
        "warmup": fields.whole("tinit", 0, low=0) / steps, "final": fields.whole("tfinal", 0, low=0) / steps, "every": fields.whole("deltaT", 1),
        "beta1": fields.number("beta1", 0.85), "beta2": fields.number("beta2", 0.85), "orthogonality": fields.number("orth_reg_weight", 0.5),
    }
    return part(model, "adalora", dict.fromkeys(paths, options)), tensors


def put_back(tensor: Tensor, left: Tensor, columns: bool, key: str, where: str) -> Tensor:
    """The tensor with zeros in the rows (or columns) that are not `left`."""
    if tensor.dim() != 2 or tensor.shape[int(columns)] != left.sum():
        raise UserError(f"{where}: tensor {key!r} is {list(tensor.shape)}, rank_pattern leaves a rank of {int(left.sum())} there")
    rows = tensor.T if columns else tensor
    whole = rows.new_zeros(len(left), rows.shape[1])
    whole[left] = rows
    return whole.T if columns else whole


def read_vera(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    """Without save_projection, the projections are made again from their seed."""
    r, seed = fields.whole("r", 256), fields.whole("projection_prng_key", 0, low=0, high=2**63 - 1)
    for path in paths:
        check_rows(where, tensors, f"{PREFIX}{path}.vera_lambda_d", r, "r")
    if not fields.flag("save_projection", True):
        if A_KEY in tensors or B_KEY in tensors:
            raise fields.error("save_projection", "is false, and the file has projections: which ones count?")
        sites, generator = [model.get_submodule(path) for path in paths], torch.Generator().manual_seed(seed)
        tensors[A_KEY] = projection((r, max(site.in_features for site in sites)), generator)
        tensors[B_KEY] = projection((max(site.out_features for site in sites), r), generator)
    options = {"r": r, "seed": seed, "dropout": fields.number("vera_dropout", 0.0), "d_start": fields.number("d_initial", 0.1)}
    return part(model, "vera", dict.fromkeys(paths, options)), tensors


def read_ia3(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    inner = fields.names("feedforward_modules") or []

    def scales_input(path: str) -> bool:  # PEFT compares the ends of names here without the dot
        return fits(inner, path) if isinstance(inner, str) else any(path.endswith(name) for name in inner)

    return part(model, "ia3", {path: {"scales": "input" if scales_input(path) else "output"} for path in paths}), tensors


def read_ln_tuning(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    return part(model, "ln_tuning", {path: {} for path in paths}), tensors


READERS = {"LORA": read_lora, "ADALORA": read_adalora, "VERA": read_vera, "IA3": read_ia3, "LN_TUNING": read_ln_tuning}


def soft(kind: str, fields: Fields, tensors: dict[str, Tensor], where: str) -> dict:
    """The table of a soft prompt or prefix. The networks that made them are not in PEFT's files, so that P-tuning is a plain soft prompt here."""
    length = fields.whole("num_virtual_tokens")
    if fields.whole("num_transformer_submodules", 1) != 1:
        raise fields.error("num_transformer_submodules", "is for encoder-decoder models")
    check_rows(where, tensors, PROMPT, length, "num_virtual_tokens")
    if kind == "PREFIX_TUNING":
        return {"kind": "prefix", "sites": ["kv"], "length": length, "scale": 1.0}
    return {"kind": "prompt", "sites": ["embed"], "length": length, "scale": 1.0, "init": "random"}


def more_parts(model: nn.Module, fields: Fields, paths: list[str]) -> tuple[dict[str, dict], dict[str, str]]:
    """What the adapter trains beside its method: (tables of those parts, the file's keys of their tensors -> ours). Raises UserError."""
    parts, owners, modules = {}, {}, peft_modules(model)
    whole = saved(model, fields.names("modules_to_save", text=False) or [])
    embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
    if fields.flag("ensure_weight_tying") and model.tied and {embedding, head} & {*whole, *paths}:
        raise fields.error("ensure_weight_tying", "with a trained embedding or head is not known here")
    if whole:
        parts["full"] = {"kind": "full", **placement(model, whole)}
        owners |= {f"{PREFIX}{path}.{leaf}": f"full:{PREFIX}{path}.{leaf}" for path in whole
                   for leaf in ("weight", "bias") if getattr(modules[path], leaf) is not None}
    bias = fields.raw.get("bias") or "none"
    if bias not in ("none", "all", "lora_only", "vera_only"):
        raise fields.error("bias", "should be none, all or lora_only")
    biases = [path for path in with_bias(model) if path not in whole and (path in paths or bias == "all")] if bias != "none" else []
    if biases:
        parts["biases"] = {"kind": "bitfit", **placement(model, biases)}
        for path in biases:
            key = f"{PREFIX}{path}.base_layer.bias" if path in paths else f"{PREFIX}{path}.bias"
            owners[key] = f"biases:{PREFIX}{path}.bias"
    ids = token_ids(model, fields)
    if ids:
        if model.tied and modules[head].bias is not None:
            raise fields.error("trainable_token_indices", f"make PEFT forget the bias of {head}, which is tied: this would compute something else")
        at = ["embed", "head"] if model.tied else ["embed"]
        parts["tokens"] = {"kind": "token_rows", "sites": at, "ids": ids}
        key = f"{PREFIX}{embedding}.token_adapter.trainable_tokens_delta"
        owners[key] = f"tokens:{key}"
        both = {model.outer_sites[site] for site in at} & {*whole, *paths, *biases}
        if both:
            raise fields.error("trainable_token_indices", f"and another part of the adapter at the same module ({both.pop()}) are not known here")
    return parts, owners


def token_ids(model: nn.Module, fields: Fields) -> list[int]:
    """The ids of trainable_token_indices: a list, or one for the embedding (and the same for a tied head). Raises UserError."""
    value = fields.raw.get("trainable_token_indices")
    if not value and value in (None, [], {}):
        return []
    if isinstance(value, dict):
        embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
        for name in value:
            if not name or not (embedding.endswith(name) or (model.tied and head.endswith(name) and len(value) > 1)):
                raise fields.error("trainable_token_indices", f"names {name!r:.100}: trained rows are known here for the embedding, {embedding}")
        lists = list(value.values())
        if any(one != lists[0] for one in lists):
            raise fields.error("trainable_token_indices", "are different ones in the embedding and in the head, which are tied in this model")
        value = lists[0]
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise fields.error("trainable_token_indices", "should be a list of token ids")
    return value


def without_copies(model: nn.Module, tensors: dict[str, Tensor], owners: dict[str, str], where: str) -> dict[str, Tensor]:
    """The tensors without those that say nothing new: copies of the base's own embedding and head beside trained ones, and with bias = "all" two more
    of every bias in modules_to_save, the trained and the replaced one. Raises UserError for copies that differ."""
    left = dict(tensors)
    for key in [key for key in owners if key.endswith(".bias") and owners[key].startswith("full:")]:
        module = key.removesuffix(".bias")
        left.pop(f"{module}.original_module.bias", None)
        again = left.pop(f"{module}.modules_to_save.bias", None)
        if again is not None and key in left and not torch.equal(again, left[key]):
            raise UserError(f"{where}: {key!r} is there twice, with different values")
    for path in (model.outer_sites["embed"], model.outer_sites["head"]):
        for leaf, base in model.get_submodule(path).named_parameters(recurse=False):
            for key in {f"{PREFIX}{path}.base_layer.{leaf}", f"{PREFIX}{path}.{leaf}"} & left.keys() - owners.keys():
                copy = left.pop(key)
                base = base.detach().to(copy.device)
                if copy.shape != base.shape or not (torch.equal(copy.to(base.dtype), base) or torch.equal(copy, base.to(copy.dtype))):
                    raise UserError(f"{where}: {key!r} is a copy of the base's {path} {list(copy.shape)}, and not that of this model {list(base.shape)}: "
                                    "it is another base, or its vocabulary was changed")
    return left
