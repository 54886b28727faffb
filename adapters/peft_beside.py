"""What PEFT trains beside an adapter's method: whole modules, biases, rows of the embedding; and copies of the base's own embedding and head."""

import warnings

import torch
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter
from adapters.config import METHODS
from adapters.peft_fields import Fields
from adapters.peft_places import peft_modules, placement, saved, with_bias
from model.errors import UserError

HEAD_BIAS = 'PEFT forgets the bias of a head that is tied to an embedding with trained rows; format="native" keeps everything'
ROWS = PREFIX + "{}.token_adapter.trainable_tokens_delta"

# ---------------------------------------------------------------- reading


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
        key = ROWS.format(embedding)
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


def read_tokens(model: nn.Module, fields: Fields, paths: list[str], tensors: dict[str, Tensor], where: str) -> tuple[dict, dict[str, Tensor]]:
    """(table, tensors by our keys) of TRAINABLE_TOKENS, which trains rows of the embedding and nothing else.

    Of a tied model PEFT saves the rows of the head too; they are the same. Raises UserError where they are not.
    """
    embedding, head = model.outer_sites["embed"], model.outer_sites["head"]
    if not {embedding} <= set(paths) <= {embedding, head} or (head in paths and not model.tied):
        raise fields.error("target_modules", f"means {', '.join(paths):.200}: trained rows are known here for the embedding, {embedding}")
    if model.tied and model.get_submodule(head).bias is not None:
        raise fields.error("token_indices", f"make PEFT forget the bias of {head}, which is tied: this would compute something else")
    ids = fields.raw.get("token_indices")
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        raise fields.error("token_indices", "should be a list of token ids")
    left, (key, again) = dict(tensors), (f"{PREFIX}{path}.trainable_tokens_delta" for path in (embedding, head))
    if model.tied and again in left:
        rows = left.pop(again)
        if key in left and not torch.equal(rows, left[key]):
            raise UserError(f"{where}: {again!r} and {key!r} differ, and the head is tied to the embedding in this model")
        left.setdefault(key, rows)
    if key not in left:
        raise UserError(f"{where}: tensor {key!r} is missing")
    left[ROWS.format(embedding)] = left.pop(key)
    return {"kind": "token_rows", "sites": ["embed", "head"] if model.tied else ["embed"], "ids": ids}, left


def base_copies(
    model: nn.Module, tensors: dict[str, Tensor], owners: dict[str, str], paths: list[str], kind: str, where: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the tensors without the base's own embedding and head, those of them that differ from this model's, by "path.weight").

    PEFT saves them with save_embedding_layers, and where they have an adapter; it loads them in place of the base's, and so do we, with a warning.
    `owners` are the keys of what is trained beside the method of this `kind` at `paths`. Raises UserError for a copy of another shape and for
    copies that something else would have to start from.
    """
    left = {key: tensor for key, tensor in tensors.items() if key.replace(".original_module.", ".") == key or
            key.replace(".original_module.", ".") not in owners}  # of modules_to_save with bias = "all", what they replaced
    ends, copies = [model.outer_sites["embed"], model.outer_sites["head"]], {}
    for path in ends:
        for leaf, base in model.get_submodule(path).named_parameters(recurse=False):
            for key in (f"{PREFIX}{path}.base_layer.{leaf}", f"{PREFIX}{path}.{leaf}"):
                if key in left and key not in owners:
                    copies[f"{path}.{leaf}"] = copy = left.pop(key)
                    if copy.shape != base.shape:
                        raise UserError(f"{where}: {key!r} is a copy of the base's {path} {list(copy.shape)}, and this model's is {list(base.shape)}: it is "
                                        "another base, or its vocabulary was changed; then save the base with as many rows first (in transformers: "
                                        f"model.resize_token_embeddings({copy.shape[0] if copy.dim() else 0}))")
    weights = [copies[f"{path}.weight"] for path in ends if f"{path}.weight" in copies]
    if model.tied and weights:
        if not torch.equal(weights[0], weights[-1]):
            raise UserError(f"{where}: its copies of the embedding and of the head differ, which are tied in this model")
        copies |= {f"{path}.weight": weights[0] for path in ends}
    bases = {f"{path}.{leaf}": base.detach() for path in ends for leaf, base in model.get_submodule(path).named_parameters(recurse=False)}
    changed = {name.rpartition(".")[0] for name, copy in copies.items() if f"full:{PREFIX}{name}" not in owners.values() and not same(copy, bases[name])}
    if not changed:
        return left, {}
    if (kind in ("dora", "token_rows") and changed & set(paths)) or any(one.startswith("tokens:") for one in owners.values()):
        raise UserError(f"{where}: its copy of the base's {changed.pop()} is not that of this model, and another part of the adapter starts from it: "
                        "it is another base, or load the base that the adapter was trained on")
    warnings.warn(f"{where} holds its own {' and '.join(sorted(changed))}, other than this model's, and they take its place, as in PEFT: they were "
                  "trained too, or the adapter is of another base", stacklevel=3)
    return left, {name: copies.get(name, base) for name, base in bases.items() if name.rpartition(".")[0] in changed}


def same(copy: Tensor, base: Tensor) -> bool:
    """Whether a copy is the base's, in the precision of either; taken for granted of a model without weights."""
    if base.is_meta:
        return True
    base = base.to(copy.device)
    return torch.equal(copy.to(base.dtype), base) or torch.equal(copy, base.to(copy.dtype))


# ---------------------------------------------------------------- writing


def beside_full(model: nn.Module, adapters: dict[str, Adapter], main: dict[str, Adapter], full: dict[str, Adapter]) -> tuple[dict, dict[str, Tensor]]:
    return {"modules_to_save": list(adapters)}, METHODS["full"].to_file(adapters)


def beside_bitfit(model: nn.Module, adapters: dict[str, Adapter], main: dict[str, Adapter], full: dict[str, Adapter]) -> tuple[dict, dict[str, Tensor]]:
    """PEFT trains all biases of the model, or all of the modules that have an adapter."""
    everywhere = {path for path in with_bias(model) if path not in full}
    meanings = {"all": everywhere, "lora_only": everywhere & main.keys()}
    word = next((word for word, places in meanings.items() if places == adapters.keys()), None)
    if word is None:
        raise UserError("PEFT trains the biases of all modules that have one, or of all that have an adapter too, and not those at just these places; "
                        'format="native" keeps everything')
    return {"bias": word}, {f"{PREFIX}{path}{'.base_layer' if path in main else ''}.bias": one.bias for path, one in adapters.items()}


def beside_rows(model: nn.Module, adapters: dict[str, Adapter], main: dict[str, Adapter], full: dict[str, Adapter]) -> tuple[dict, dict[str, Tensor]]:
    if model.tied and model.lm_head.bias is not None:
        raise UserError(HEAD_BIAS)
    return {"trainable_token_indices": list(next(iter(adapters.values())).options.ids)}, METHODS["token_rows"].to_file(adapters)


MORE = {"full": beside_full, "bitfit": beside_bitfit, "token_rows": beside_rows}
