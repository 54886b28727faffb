"""The adapter files of the paper's repository (AGI-Edgerunners/LLM-Adapters): adapter_config.json + adapter_model.bin.

    mh_adapter          y = W (x + s f(x)) + b          f(x) = U act(D x)          gate, up
    output_adapter      z = W x + b;  y = z + s f(z)                               down
    parallel_adapter    y = W x + b + s f(x)                                       any Linear

A file does not say which of the three a module has: with use_parallel_adapter all have the last one, otherwise the module's name decides (KINDS).
Modules are named by the ends of their paths, in a list, or by an expression that fits the whole path; nothing else says what is adapted.

The repository's LoRA is PEFT's of that time, with one form of its own: a fused Linear whose first and last thirds of the rows have a LoRA each
(MergedLinear; every LoRA trained there on one target, so that of BLOOM). BLOOM's rows are laid out by heads, but this is what was trained.
"""

import math

import torch
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter
from adapters.compose import Group
from adapters.config import AdapterConfig, resolve
from adapters.formats.peft_defaults import default_targets
from adapters.formats.peft_fields import FIELDS, NO_EFFECT, NOT_COMPUTED, checked
from adapters.formats.peft_places import Absent, leaves, pass_over, placement, whole_match
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.lora import LoRA
from adapters.places import all_sites
from files.errors import UserError, unknown
from model.sites import Linear

INPUT, OUTPUT, PARALLEL = (
    ("input", "input"),
    ("output", "output"),
    ("input", "output"),
)  # (reads, writes) of mh_, output_ and parallel_adapter
KINDS = {  # the last name of a module -> the series adapter it has in the paper's code
    "llama": {"gate_proj": INPUT, "up_proj": INPUT, "down_proj": OUTPUT},
    "bloom": {"dense_h_to_4h": INPUT, "dense_4h_to_h": OUTPUT},
    "gptj": {"fc_in": INPUT, "fc_out": OUTPUT},
    "opt": {"fc1": INPUT, "fc2": OUTPUT},
}
ACTS = {
    "tanh": "tanh",
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "linear": "none",
}  # non_linearity -> our act
INITS = {"bert": "bert", "mam_adapter": "identity"}  # init_weights -> our init
OF_ALL = {
    "peft_type",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "target_modules",
    "bias",
    "modules_to_save",
}
OF_BOTTLENECKS = {
    "bottleneck_size",
    "non_linearity",
    "adapter_dropout",
    "scaling",
    "use_parallel_adapter",
    "use_adapterp",
    "init_weights",
}
OF_LORA = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "merge_weights",
    "fan_in_fan_out",
    "enable_lora",
    "init_lora_weights",
}


def is_ours(raw: dict, tensors: dict[str, Tensor]) -> bool:
    """Whether these are the fields and tensors of a file of the paper's repository that PEFT has no form for."""
    return raw.get("peft_type") == "BOTTLENECK" or (
        raw.get("peft_type") == "LORA"
        and any(
            key.endswith(".lora_B.weight") and tensor.dim() == 3 for key, tensor in tensors.items()
        )
    )


def read(
    model: nn.Module, raw: dict, tensors: dict[str, Tensor], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The configuration that a file's fields and tensors mean, and the tensors by our keys.

    Raises UserError for what is not computed here.
    """
    lora = raw["peft_type"] == "LORA"
    known = OF_ALL | NO_EFFECT | (OF_LORA if lora else OF_BOTTLENECKS)
    # A later PEFT has these; with such tensors, or for a bottleneck, they are a contradiction.
    peft = FIELDS["LORA"] | NOT_COMPUTED["LORA"]
    raw = checked(raw, where, known, peft - known, raw["peft_type"])
    if raw.get("bias") not in (None, "none"):
        raise UserError(
            f"{where}: bias = {raw['bias']!r:.100} means that biases of the base were trained too, which is not supported"
        )
    if raw.get("modules_to_save"):
        raise UserError(
            f"{where}: modules_to_save = {raw['modules_to_save']!r:.100} is not supported in the paper's files"
        )
    targets = raw.get("target_modules")
    if lora and targets is None:
        targets = default_targets("LORA", model)
    paths, absent = targeted(model, targets, where)
    known = [f"{PREFIX}{path}." for path in paths]
    pass_over(model, [Absent("target_modules", absent)], tensors, known, where)
    return (read_lora if lora else read_bottlenecks)(model, raw, tensors, paths, where)


def read_bottlenecks(
    model: nn.Module, raw: dict, tensors: dict[str, Tensor], paths: list[str], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    parallel = setting(raw, "use_parallel_adapter", bool, False, where)
    setting(raw, "use_adapterp", bool, False, where)  # it only chose the targets, which are there
    scale = raw.get("scaling", 1.0)
    if scale != "learned":
        scale = setting(raw, "scaling", float, 1.0, where)
    places = {path: PARALLEL if parallel else series_kind(model, path, where) for path in paths}
    first = places[paths[0]]
    overrides = {
        path.rpartition(".")[2]: {"reads": reads, "writes": writes}
        for path, (reads, writes) in places.items()
        if (reads, writes) != first
    }
    return resolve(
        kind="bottleneck",
        **placement(model, paths),
        reads=first[0],
        writes=first[1],
        overrides=overrides,
        size=setting(raw, "bottleneck_size", int, 256, where),
        scale=scale,
        dropout=setting(raw, "adapter_dropout", float, 0.0, where),
        act=word(raw, "non_linearity", "tanh", ACTS, where),
        init=word(raw, "init_weights", "bert", INITS, where),
    ), tensors


def read_lora(
    model: nn.Module, raw: dict, tensors: dict[str, Tensor], paths: list[str], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """MergedLinear's two LoRAs as one of rank 2 r: B₁ in the upper left and B₂ in the lower right, zeros elsewhere."""
    if raw.get("enable_lora") not in (None, [True, False, True]):
        raise UserError(
            f"{where}: enable_lora = {raw['enable_lora']!r:.100} is not supported, only [true, false, true] is"
        )
    r = setting(raw, "r", int, 8, where)
    if r < 1:
        raise UserError(f"{where}: r = {r} must be at least 1")
    found = dict(tensors)
    for path in paths:
        site = model.get_submodule(path)
        if site.out_features % 3:
            raise UserError(
                f"{where}: {path} has {site.out_features} rows, which cannot be a LoRA on the first and the last third of them"
            )
        third = site.out_features // 3
        key = f"{PREFIX}{path}.lora_B.weight"
        if key in found:
            B = found[key]
            if B.shape != (2 * third, r, 1):
                raise UserError(
                    f"{where}: tensor {key!r} is {list(B.shape)}, the configuration asks for {[2 * third, r, 1]}"
                )
            found[key] = B.new_zeros(3 * third, 2 * r)
            found[key][:third, :r] = B[:third, :, 0]
            found[key][2 * third :, r:] = B[third:, :, 0]
    alpha = setting(raw, "lora_alpha", float, None, where)
    return resolve(
        kind="lora",
        **placement(model, paths),
        r=2 * r,
        alpha=2 * alpha,
        dropout=setting(raw, "lora_dropout", float, 0.0, where),
    ), found


def targeted(model: nn.Module, targets, where: str) -> tuple[list[str], list[str]]:
    """(paths of the Linears that target_modules means, in the model's order; names that mean none).

    Raises UserError when none means any.
    """
    linears = [path for path, site in all_sites(model) if isinstance(site, Linear)]
    if isinstance(targets, str):
        found = [path for path in linears if whole_match(targets, path)]
        absent = [] if found else [targets]
    elif isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets):
        found = [path for path in linears if path.endswith(tuple(targets))]
        absent = [name for name in targets if not any(path.endswith(name) for path in linears)]
    else:
        raise UserError(
            f'{where}: target_modules = {targets!r:.100} should name modules, such as ["q_proj", "v_proj"]'
        )
    if not found:
        raise UserError(f"{where}: {Absent('target_modules', absent).unknown(model)}")
    return found, absent


def series_kind(model: nn.Module, path: str, where: str) -> tuple[str, str]:
    """(reads, writes) of the series adapter of the paper's code at a module. Raises UserError where it has none."""
    kinds, leaf = KINDS[model.family], path.rpartition(".")[2]
    if leaf not in kinds:
        raise UserError(
            f"{where}: the paper's code has series adapters at {', '.join(kinds)} of a {model.family} model and none at {path}"
        )
    return kinds[leaf]


def setting(raw: dict, key: str, kind: type, default, where: str):
    """A field of this type, whole numbers being floats too. Raises UserError."""
    value = raw.get(key, default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(
            f"{where}: {key} = {value!r:.100} in its configuration should be a {kind.__name__}"
        )
    return value


def word(raw: dict, key: str, default: str, known: dict[str, str], where: str) -> str:
    """What a field's word is called here. Raises UserError for an unknown one."""
    value = raw.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{where}: {unknown(key, value, known)}")
    return known[value]


# ---------------------------------------------------------------- writing


def write(
    model: nn.Module, config: AdapterConfig, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    """The fields and tensors that the paper's code reads. Raises UserError for what it cannot express."""
    if config.kind not in ("bottleneck", "lora"):
        raise UserError(
            f"the paper's files hold bottlenecks or LoRA alone, and this adapter is {config.kind}: use the format native, or merge it"
        )
    for path in adapters:
        if not isinstance(model.get_submodule(path), Linear):
            raise UserError(
                f"the paper's code has adapters on single Linears, and {path} is a {model.get_submodule(path).kind}; "
                "the presets paper-series-h, paper-series-p and paper-parallel stand where it has them"
            )
    if any(isinstance(one, Group) for one in adapters.values()):
        raise UserError(
            "the paper's files hold one adapter at a module, and this one is a mixture with several"
        )
    bottlenecks = config.kind == "bottleneck"
    fields, tensors = (write_bottlenecks if bottlenecks else write_lora)(model, adapters)
    header = {
        "peft_type": "BOTTLENECK" if bottlenecks else "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": str(model.folder),
        "target_modules": as_targets(model, list(adapters)),
        "bias": "none",
        "modules_to_save": None,
    }
    return header | fields, tensors


def write_bottlenecks(
    model: nn.Module, adapters: dict[str, Bottleneck]
) -> tuple[dict, dict[str, Tensor]]:
    kinds = {path: (one.options.reads, one.options.writes) for path, one in adapters.items()}
    parallel = set(kinds.values()) == {PARALLEL}
    for path, kind in kinds.items():
        if not parallel and kind != series_kind(model, path, "format paper"):
            raise UserError(
                f"reads = {kind[0]!r}, writes = {kind[1]!r} at {path}: in the paper's code all adapters are parallel ones, "
                "or each has the series kind of its module's name (preset paper-series-h)"
            )
    options = [one.options for one in adapters.values()]
    if any(one.gate for one in options):
        raise UserError("the paper's code has no gate beside a bottleneck")
    act = same("act", [o.act for o in options])
    return {
        "bottleneck_size": same("size", [one.adapter_down.shape[0] for one in adapters.values()]),
        "non_linearity": next(theirs for theirs, ours in ACTS.items() if ours == act),
        "adapter_dropout": same("dropout", [o.dropout for o in options]),
        "scaling": same("scale", [o.scale for o in options]),
        "use_parallel_adapter": parallel,
        "use_adapterp": False,
        "init_weights": "mam_adapter" if options[0].init == "identity" else "bert",
    }, Bottleneck.to_file(adapters)


def write_lora(model: nn.Module, adapters: dict[str, LoRA]) -> tuple[dict, dict[str, Tensor]]:
    """One r and one scale for all; a fused Linear whose B has MergedLinear's zeros is written as MergedLinear, as it may have been read."""
    options = [one.options for one in adapters.values()]
    if any(one.gate or one.bias for one in options):
        raise UserError("the LoRA of the paper's code has neither a gate nor a bias of its own")
    r, dropout = same("r", [o.r for o in options]), same("dropout", [o.dropout for o in options])
    scale = same("scale (alpha / r)", [o.scale for o in options])
    tensors = LoRA.to_file(adapters)
    merged = all(
        path.endswith("query_key_value") and in_thirds(one.lora_B) for path, one in adapters.items()
    )
    if merged:
        r //= 2
        for path, one in adapters.items():
            third = one.lora_B.shape[0] // 3
            tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.cat(
                (one.lora_B[:third, :r], one.lora_B[2 * third :, r:])
            )[:, :, None]
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
    """The one value of all places. Raises UserError where they differ."""
    if any(value != values[0] for value in values):
        raise UserError(
            f"the paper's files have one {key} for all modules, and this adapter has {', '.join(map(str, dict.fromkeys(values)))}"
        )
    return values[0]


def as_targets(model: nn.Module, paths: list[str]) -> list[str]:
    """The last names of these modules where they mean no others, otherwise their whole paths."""
    for targets in (leaves(paths), paths):
        if set(targeted(model, targets, "format paper")[0]) == set(paths):
            return targets
    raise UserError(
        f"the paper's files cannot name these modules without others: {', '.join(paths)}"
    )
