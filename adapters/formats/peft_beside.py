"""What PEFT trains beside an adapter's method, read and written: whole modules, biases, rows.

modules_to_save            a part of the kind full
bias                       one of the kind bitfit
trainable_token_indices    one of the kind token_rows; alone it is PEFT's TRAINABLE_TOKENS
"""

import torch
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter
from adapters.config import METHODS
from adapters.formats.peft_fields import Fields
from adapters.formats.peft_places import peft_modules, placement, saved, with_bias
from files.errors import UserError

KEEPS = 'format="native" keeps everything'
HEAD_BIAS = (
    f"PEFT forgets the bias of a head that is tied to an embedding with trained rows; {KEEPS}"
)
HEAD_FORGOTTEN = "make PEFT forget the bias of {}, which is tied: this would compute something else"
ROWS = PREFIX + "{}.token_adapter.trainable_tokens_delta"
Adapters = dict[str, Adapter]  # by the path of their module
Written = tuple[dict, dict[str, Tensor]]  # fields of adapter_config.json, tensors


# ---------------------------------------------------------------- reading


def more_parts(
    model: nn.Module, fields: Fields, paths: list[str]
) -> tuple[dict[str, dict], dict[str, str]]:
    """(tables of what is trained beside the method; the file's keys of their tensors -> ours).

    `paths` are the modules that have the method. Raises UserError for what is not computed here.
    """
    parts, owners, modules = {}, {}, peft_modules(model)
    whole = saved(model, fields.names("modules_to_save", text=False) or [])
    embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
    tying = fields.flag("ensure_weight_tying") and model.tied
    if tying and {embedding, head} & {*whole, *paths}:
        what = "with a trained embedding or head is not known here"
        raise fields.error("ensure_weight_tying", what)
    if whole:
        parts["full"] = {"kind": "full", **placement(model, whole)}
        names = [
            f"{PREFIX}{path}.{leaf}"
            for path in whole
            for leaf in ("weight", "bias")
            if getattr(modules[path], leaf) is not None
        ]
        owners |= {name: f"full:{name}" for name in names}
    biases = trained_biases(model, fields, paths, whole)
    if biases:
        parts["biases"] = {"kind": "bitfit", **placement(model, biases)}
        for path in biases:
            key = f"{path}.base_layer.bias" if path in paths else f"{path}.bias"
            owners[PREFIX + key] = f"biases:{PREFIX}{path}.bias"
    ids = token_ids(model, fields)
    if ids:
        if model.tied and modules[head].bias is not None:
            raise fields.error("trainable_token_indices", HEAD_FORGOTTEN.format(head))
        parts["tokens"] = rows_table(model, ids)
        owners[ROWS.format(embedding)] = f"tokens:{ROWS.format(embedding)}"
        at = {model.outer_sites[site] for site in parts["tokens"]["sites"]}
        both = at & {*whole, *paths, *biases}
        if both:
            also = f"another part of the adapter at the same module ({both.pop()})"
            raise fields.error("trainable_token_indices", f"and {also} are not known here")
    return parts, owners


def trained_biases(
    model: nn.Module, fields: Fields, paths: list[str], whole: list[str]
) -> list[str]:
    """The paths of the modules whose own bias is trained. Raises UserError."""
    bias = fields.raw.get("bias") or "none"
    if bias not in ("none", "all", "lora_only", "vera_only"):
        raise fields.error("bias", "should be none, all or lora_only")
    if bias == "none":
        return []
    there = [path for path in with_bias(model) if path not in whole]
    return there if bias == "all" else [path for path in there if path in paths]


def token_ids(model: nn.Module, fields: Fields) -> list[int]:
    """The ids of trainable_token_indices. Raises UserError.

    It is a list, or a table with one for the embedding, and the same for a tied head.
    """
    name = "trainable_token_indices"
    value = fields.raw.get(name)
    if not value and value in (None, [], {}):
        return []
    if isinstance(value, dict):
        embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
        for module in value:
            tied = model.tied and head.endswith(module) and len(value) > 1
            if not module or not (embedding.endswith(module) or tied):
                known = f"trained rows are known here for the embedding, {embedding}"
                raise fields.error(name, f"names {module!r:.100}: {known}")
        lists = list(value.values())
        if any(ids != lists[0] for ids in lists):
            raise fields.error(name, "differ in the embedding and the head, which are tied here")
        value = lists[0]
    return checked_ids(fields, name, value)


def checked_ids(fields: Fields, name: str, value) -> list[int]:
    """A list of token ids. Raises UserError."""
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise fields.error(name, "should be a list of token ids")
    return value


def rows_table(model: nn.Module, ids: list[int]) -> dict:
    """The table of the trained rows; a tied head has them too."""
    sites = ["embed", "head"] if model.tied else ["embed"]
    return {"kind": "token_rows", "sites": sites, "ids": ids}


def read_tokens(
    model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str
) -> tuple[dict, dict[str, Tensor]]:
    """(table, tensors by our keys) of TRAINABLE_TOKENS, which trains rows and nothing else.

    Of a tied model PEFT saves the rows of the head as well. Raises UserError if they differ.
    """
    embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
    others = set(paths) - ({embedding, head} if model.tied else {embedding})
    if others or embedding not in paths:
        known = f"trained rows are known here for the embedding, {embedding}"
        raise fields.error("target_modules", f"means {', '.join(paths):.200}: {known}")
    if model.tied and model.get_submodule(head).bias is not None:
        raise fields.error("token_indices", HEAD_FORGOTTEN.format(head))
    ids = checked_ids(fields, "token_indices", fields.raw.get("token_indices"))
    if not ids:
        raise fields.error("token_indices", "should be a list of token ids")
    left = dict(tensors)
    key, again = (f"{PREFIX}{path}.trainable_tokens_delta" for path in (embedding, head))
    if model.tied and again in left:
        rows = left.pop(again)
        if not torch.equal(rows, left.setdefault(key, rows)):
            raise UserError(f"{where}: {again!r} and {key!r} differ, and the head is tied here")
    if key not in left:
        raise UserError(f"{where}: tensor {key!r} is missing")
    left[ROWS.format(embedding)] = left.pop(key)
    return rows_table(model, ids), left


# ---------------------------------------------------------------- writing


def beside_full(model: nn.Module, adapters: Adapters, main: Adapters, full: Adapters) -> Written:
    return {"modules_to_save": list(adapters)}, METHODS["full"].to_file(adapters)


def beside_bitfit(model: nn.Module, adapters: Adapters, main: Adapters, full: Adapters) -> Written:
    """PEFT trains all biases of the model, or all of the modules that have an adapter."""
    everywhere = {path for path in with_bias(model) if path not in full}
    meanings = {"all": everywhere, "lora_only": everywhere & main.keys()}
    word = next((word for word, places in meanings.items() if places == adapters.keys()), None)
    if word is None:
        raise UserError(
            "PEFT trains the biases of all modules that have one, or of all that have an adapter "
            f"too, and not those at just these places; {KEEPS}"
        )
    behind = {path: ".base_layer.bias" if path in main else ".bias" for path in adapters}
    return {"bias": word}, {
        PREFIX + path + behind[path]: adapter.bias for path, adapter in adapters.items()
    }


def beside_rows(model: nn.Module, adapters: Adapters, main: Adapters, full: Adapters) -> Written:
    if model.tied and model.lm_head.bias is not None:
        raise UserError(HEAD_BIAS)
    ids = list(next(iter(adapters.values())).options.ids)
    return {"trainable_token_indices": ids}, METHODS["token_rows"].to_file(adapters)


MORE = {"full": beside_full, "bitfit": beside_bitfit, "token_rows": beside_rows}
