"""What PEFT trains beside an adapter's method, read and written: whole modules, biases, rows.

modules_to_save            a part of the kind full
bias                       one of the kind bitfit
trainable_token_indices    one of the kind token_rows; alone it is PEFT's TRAINABLE_TOKENS
"""

import torch
from torch import Tensor

from adapters.base import PREFIX, Adapter
from adapters.config import METHODS
from adapters.formats.peft_fields import File
from adapters.formats.peft_places import peft_modules, placement, saved, with_bias
from files.errors import UserError
from model.language import LanguageModel

KEEPS = 'format="native" keeps everything'
HEAD_BIAS = (
    f"PEFT forgets the bias of a head that is tied to an embedding with trained rows; {KEEPS}"
)
HEAD_FORGOTTEN = "make PEFT forget the bias of {}, which is tied: this would compute something else"
ROWS = PREFIX + "{}.token_adapter.trainable_tokens_delta"
Adapters = dict[str, Adapter]  # by the path of their module
Written = tuple[dict, dict[str, Tensor]]  # fields of adapter_config.json, tensors


# ---------------------------------------------------------------- reading


def more_parts(file: File) -> tuple[dict[str, dict], dict[str, str]]:
    """(tables of what is trained beside the method; the file's keys of their tensors -> ours).

    Raises UserError for what is not computed here.
    """
    model, fields, paths = file.model, file.fields, file.paths
    parts, owners, modules = {}, {}, peft_modules(model)
    whole = saved(model, fields.modules_to_save)
    embedding, head = file.ends
    if fields.ensure_weight_tying and model.tied and {embedding, head} & {*whole, *paths}:
        what = "with a trained embedding or head is not known here"
        raise fields.error("ensure_weight_tying", what)
    if whole:
        parts["full"] = {"kind": "full", **placement(model, whole)}
        for path in whole:
            for leaf in ("weight", "bias"):
                if getattr(modules[path], leaf) is not None:
                    owners[f"{PREFIX}{path}.{leaf}"] = f"full:{PREFIX}{path}.{leaf}"
    trained = {"none": (), "": (), "all": with_bias(model)}.get(fields.bias, paths)
    biases = [path for path in with_bias(model) if path in trained and path not in whole]
    if biases:
        parts["biases"] = {"kind": "bitfit", **placement(model, biases)}
        for path in biases:
            key = f"{path}.base_layer.bias" if path in paths else f"{path}.bias"
            owners[PREFIX + key] = f"biases:{PREFIX}{path}.bias"
    ids = token_ids(file)
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


def token_ids(file: File) -> list[int]:
    """The ids of trainable_token_indices. Raises UserError.

    It is a list, or a table with one for the embedding, and the same for a tied head.
    """
    name, tied, (embedding, head) = "trainable_token_indices", file.model.tied, file.ends
    ids = file.fields.trainable_token_indices
    if not isinstance(ids, dict):
        return ids
    for module in ids:
        also = tied and head.endswith(module) and len(ids) > 1
        if not module or not (embedding.endswith(module) or also):
            known = f"trained rows are known here for the embedding, {embedding}"
            raise file.fields.error(name, f"names {module!r:.100}: {known}")
    lists = list(ids.values())
    if any(other != lists[0] for other in lists):
        raise file.fields.error(name, "differ in the embedding and the head, which are tied here")
    return lists[0] if lists else []


def rows_table(model: LanguageModel, ids: list[int]) -> dict:
    """The table of the trained rows; a tied head has them too."""
    sites = ["embed", "head"] if model.tied else ["embed"]
    return {"kind": "token_rows", "sites": sites, "ids": ids}


def read_tokens(file: File) -> dict:
    """The table of TRAINABLE_TOKENS, which trains rows and nothing else.

    Of a tied model PEFT saves the rows of the head as well. Raises UserError if they differ.
    """
    model, fields, tensors, (embedding, head) = file.model, file.fields, file.tensors, file.ends
    others = set(file.paths) - ({embedding, head} if model.tied else {embedding})
    if others or embedding not in file.paths:
        known = f"trained rows are known here for the embedding, {embedding}"
        raise fields.error("target_modules", f"means {', '.join(file.paths):.200}: {known}")
    if model.tied and model.get_submodule(head).bias is not None:
        raise fields.error("token_indices", HEAD_FORGOTTEN.format(head))
    if not fields.token_indices:
        raise fields.error("token_indices", "should be a list of token ids")
    key, again = (f"{PREFIX}{path}.trainable_tokens_delta" for path in (embedding, head))
    if model.tied and again in tensors:
        rows = tensors.pop(again)
        if not torch.equal(rows, tensors.setdefault(key, rows)):
            raise file.error(f"{again!r} and {key!r} differ, and the head is tied here")
    if key not in tensors:
        raise file.error(f"tensor {key!r} is missing")
    tensors[ROWS.format(embedding)] = tensors.pop(key)
    return rows_table(model, fields.token_indices)


# ---------------------------------------------------------------- writing


def beside_full(model: LanguageModel, here: Adapters, main: Adapters, full: Adapters) -> Written:
    return {"modules_to_save": list(here)}, METHODS["full"].to_file(here)


def beside_bias(model: LanguageModel, here: Adapters, main: Adapters, full: Adapters) -> Written:
    """PEFT trains all biases of the model, or all of the modules that have an adapter."""
    everywhere = {path for path in with_bias(model) if path not in full}
    meanings = {"all": everywhere, "lora_only": everywhere & main.keys()}
    word = next((word for word, places in meanings.items() if places == here.keys()), None)
    if word is None:
        raise UserError(
            "PEFT trains the biases of all modules that have one, or of all that have an adapter "
            f"too, and not those at just these places; {KEEPS}"
        )
    leaf = {path: "base_layer.bias" if path in main else "bias" for path in here}
    return {"bias": word}, {f"{PREFIX}{path}.{leaf[path]}": here[path].bias for path in here}


def beside_rows(model: LanguageModel, here: Adapters, main: Adapters, full: Adapters) -> Written:
    if model.tied and model.lm_head.bias is not None:
        raise UserError(HEAD_BIAS)
    ids = list(next(iter(here.values())).options.ids)
    return {"trainable_token_indices": ids}, METHODS["token_rows"].to_file(here)


BESIDE = {  # kind -> what PEFT can train beside it
    **dict.fromkeys(("lora", "dora", "pissa"), ("full", "bitfit", "token_rows")),
    **dict.fromkeys(("adalora", "vera"), ("full", "bitfit")),
    **dict.fromkeys(("ia3", "ln_tuning", "hira", "miss", "road", "oft", "shira"), ("full",)),
}
MORE = {"full": beside_full, "bitfit": beside_bias, "token_rows": beside_rows}
