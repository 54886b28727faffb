"""Writing files for the paper's repository (reading and the forms: adapters/formats/paper.py)."""

import torch
from torch import Tensor

from adapters.base import PREFIX, Adapter
from adapters.compose import Group
from adapters.config import AdapterConfig
from adapters.formats.base_model import common
from adapters.formats.paper import ACTS, PARALLEL, series_kind, targeted
from adapters.formats.peft_beside import Written
from adapters.formats.peft_places import leaves
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.lora import LoRA
from files.errors import UserError
from model.language import LanguageModel
from model.sites import Linear


def write(model: LanguageModel, config: AdapterConfig, adapters: dict[str, Adapter]) -> Written:
    """The fields and tensors that the paper's code reads.

    Raises UserError for what it cannot express.
    """
    if config.kind not in ("bottleneck", "lora"):
        raise UserError(
            f"the paper's files hold bottlenecks or LoRA alone, and this adapter is {config.kind}: "
            "use the format native, or merge it"
        )
    for path in adapters:
        site = model.get_submodule(path)
        if not isinstance(site, Linear):
            raise UserError(
                f"the paper's code has adapters on single Linears, and {path} is a {site.kind}; "
                "the presets paper-series-h, paper-series-p and paper-parallel stand where it has "
                "them"
            )
    if any(isinstance(adapter, Group) for adapter in adapters.values()):
        raise UserError(
            "the paper's files hold one adapter at a module, and this one is a mixture with several"
        )
    bottlenecks = config.kind == "bottleneck"
    fields, tensors = (write_bottlenecks if bottlenecks else write_lora)(model, adapters)
    header = common(model, "BOTTLENECK" if bottlenecks else "LORA")
    header["target_modules"] = as_targets(model, list(adapters))
    return header | {"bias": "none", "modules_to_save": None} | fields, tensors


def write_bottlenecks(model: LanguageModel, adapters: dict[str, Bottleneck]) -> Written:
    options = {path: adapter.options for path, adapter in adapters.items()}
    kinds = {path: (o.reads, o.writes) for path, o in options.items()}
    parallel = set(kinds.values()) == {PARALLEL}
    for path, (reads, writes) in kinds.items():
        if not parallel and (reads, writes) != series_kind(model, path, "format paper"):
            raise UserError(
                f"reads = {reads!r}, writes = {writes!r} at {path}: in the paper's code all "
                "adapters are parallel ones, or each has the series kind of its module's name "
                "(preset paper-series-h)"
            )
    if any(o.gate for o in options.values()):
        raise UserError("the paper's code has no gate beside a bottleneck")
    act = same("act", [o.act for o in options.values()])
    first = next(iter(options.values()))
    return {
        "bottleneck_size": same("size", [len(a.adapter_down) for a in adapters.values()]),
        "non_linearity": next(theirs for theirs, ours in ACTS.items() if ours == act),
        "adapter_dropout": same("dropout", [o.dropout for o in options.values()]),
        "scaling": same("scale", [o.scale for o in options.values()]),
        "use_parallel_adapter": parallel,
        "use_adapterp": False,
        "init_weights": "mam_adapter" if first.init == "identity" else "bert",
    }, Bottleneck.to_file(adapters)


def write_lora(model: LanguageModel, adapters: dict[str, LoRA]) -> Written:
    """One r and one scale for all.

    A fused Linear whose B has MergedLinear's zeros is written as MergedLinear, as it may have been
    read.
    """
    options = [adapter.options for adapter in adapters.values()]
    if any(o.gate or o.bias for o in options):
        raise UserError("the LoRA of the paper's code has neither a gate nor a bias of its own")
    r, dropout = same("r", [o.r for o in options]), same("dropout", [o.dropout for o in options])
    scale = same("scale (alpha / r)", [o.scale for o in options])
    tensors = LoRA.to_file(adapters)
    fused = all(path.endswith("query_key_value") for path in adapters)
    merged = fused and all(in_thirds(adapter.lora_B) for adapter in adapters.values())
    if merged:
        r //= 2
        for path, adapter in adapters.items():
            B, third = adapter.lora_B, len(adapter.lora_B) // 3
            both = torch.cat((B[:third, :r], B[2 * third :, r:]))
            tensors[f"{PREFIX}{path}.lora_B.weight"] = both[:, :, None]
    return {
        "r": r,
        "lora_alpha": scale * r,
        "lora_dropout": dropout,
        "merge_weights": False,
        "fan_in_fan_out": False,
        "enable_lora": [True, False, True] if merged else None,
    }, tensors


def in_thirds(B: Tensor) -> bool:
    """Whether B [out, 2 r] is [[B₁, 0], [0, 0], [0, B₂]], with neither of the two zero."""
    (out, r), third = B.shape, B.shape[0] // 3
    if out % 3 or r % 2:
        return False
    blocks = [[bool(block.any()) for block in rows.split(r // 2, dim=1)] for rows in B.split(third)]
    return blocks == [[True, False], [False, False], [False, True]]


def same(key: str, values: list):
    """The one value of all places. Raises UserError if they differ."""
    if any(value != values[0] for value in values):
        raise UserError(
            f"the paper's files have one {key} for all modules, and this adapter has "
            f"{', '.join(map(str, dict.fromkeys(values)))}"
        )
    return values[0]


def as_targets(model: LanguageModel, paths: list[str]) -> list[str]:
    """The last names of these modules if they mean no others, otherwise their whole paths."""
    for targets in (leaves(paths), paths):
        if set(targeted(model, targets, "format paper")[0]) == set(paths):
            return targets
    raise UserError(
        f"the paper's files cannot name these modules without others: {', '.join(paths)}"
    )
