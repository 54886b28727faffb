"""Reading the paper repository's files (AGI-Edgerunners/LLM-Adapters).

    mh_adapter          y = W (x + s f(x)) + b          f(x) = U act(D x)          gate, up
    output_adapter      z = W x + b;  y = z + s f(z)                               down
    parallel_adapter    y = W x + b + s f(x)                                       any Linear

They are adapter_config.json + adapter_model.bin. A file does not say which of the three a module
has: with use_parallel_adapter all have the last one, otherwise the module's name decides (KINDS).
Modules are named by the ends of their paths, in a list, or by an expression that fits the whole
path; nothing else says what is adapted.

The repository's LoRA is PEFT's of that time, with one form of its own: a fused Linear whose first
and last thirds of the rows have a LoRA each (MergedLinear; every LoRA trained there on one target,
so that of BLOOM). BLOOM's rows are laid out by heads, but this is what was trained.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from torch import Tensor

from adapters.base import PREFIX
from adapters.config import AdapterConfig, resolve
from adapters.formats.peft_defaults import default_targets
from adapters.formats.peft_fields import FIELDS, NO_EFFECT, NOT_COMPUTED, File, checked
from adapters.formats.peft_places import no_such, pass_over, placement
from adapters.places import all_sites
from files.errors import UserError, unknown
from files.patterns import match
from files.typed import Range, typed_values
from model.language import LanguageModel
from model.sites import Linear

INPUT, OUTPUT, PARALLEL = ("input", "input"), ("output", "output"), ("input", "output")
KINDS = {  # the last name of a module -> (reads, writes) of its series adapter in the paper's code
    "llama": {"gate_proj": INPUT, "up_proj": INPUT, "down_proj": OUTPUT},
    "bloom": {"dense_h_to_4h": INPUT, "dense_4h_to_h": OUTPUT},
    "gptj": {"fc_in": INPUT, "fc_out": OUTPUT},
    "opt": {"fc1": INPUT, "fc2": OUTPUT},
}
ACTS = {  # non_linearity -> our act
    "tanh": "tanh", "relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu",
    "linear": "none",
}  # fmt: skip
INITS = {"bert": "bert", "mam_adapter": "identity"}  # init_weights -> our init
OF_ALL = set(
    """base_model_name_or_path bias inference_mode modules_to_save peft_type target_modules
    task_type""".split()
)


@dataclass(frozen=True)
class BottleneckFields:
    bottleneck_size: int = 256
    non_linearity: Any = "tanh"
    adapter_dropout: float = 0.0
    scaling: float | Literal["learned"] = 1.0
    use_parallel_adapter: bool = False
    use_adapterp: bool = False  # it only chose the targets, which are there
    init_weights: Any = "bert"


@dataclass(frozen=True)
class LoRAFields:
    lora_alpha: float
    r: Annotated[int, Range(1)] = 8
    lora_dropout: float = 0.0
    # Without effect.
    merge_weights: Any = None
    fan_in_fan_out: Any = None
    enable_lora: Any = None
    init_lora_weights: Any = None


def is_paper(raw: dict, tensors: dict[str, Tensor]) -> bool:
    """Whether fields and tensors are of the paper's repository, in a form that PEFT has not."""
    thirds = [key for key in tensors if key.endswith(".lora_B.weight") and tensors[key].dim() == 3]
    return raw.get("peft_type") == "BOTTLENECK" or (raw.get("peft_type") == "LORA" and bool(thirds))


def read(
    model: LanguageModel, raw: dict, tensors: dict[str, Tensor], where: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The configuration that a file's fields and tensors mean, and the tensors by our keys.

    Raises UserError for what is not computed here.
    """
    lora = raw["peft_type"] == "LORA"
    kind = LoRAFields if lora else BottleneckFields
    own = {field.name for field in fields(kind)}
    # A later PEFT has these; with such tensors, or for a bottleneck, they are a contradiction.
    peft = FIELDS["LORA"] | NOT_COMPUTED["LORA"]
    known = OF_ALL | NO_EFFECT | own
    raw = checked(raw, where, known, peft - known, raw["peft_type"])
    if raw.get("bias") not in (None, "none"):
        raise UserError(
            f"{where}: bias = {raw['bias']!r:.100} means that biases of the base were trained too, "
            "which is not supported"
        )
    if raw.get("modules_to_save"):
        raise UserError(
            f"{where}: modules_to_save = {raw['modules_to_save']!r:.100} is not supported in the "
            "paper's files"
        )
    if lora and raw.get("enable_lora") not in (None, [True, False, True]):
        raise UserError(
            f"{where}: enable_lora = {raw['enable_lora']!r:.100} is not supported, only "
            "[true, false, true] is"
        )
    targets = raw.get("target_modules")
    if lora and targets is None:
        targets = default_targets("LORA", model)
    paths, absent = targeted(model, targets, where)
    places = tuple(f"{PREFIX}{path}." for path in paths)
    pass_over(model, {"target_modules": absent} if absent else {}, tensors, places, where)
    values = typed_values(kind, {key: raw[key] for key in raw if key in own}, where)
    if lora and "lora_alpha" not in values:
        raise UserError(f"{where}: lora_alpha = None should be a number")
    file = File(model, kind(**values), dict(tensors), where, paths)
    return resolve(read_lora(file) if lora else read_bottlenecks(file)), file.tensors


def read_bottlenecks(file: File) -> dict:
    """The table of a file's bottlenecks."""
    fields: BottleneckFields = file.fields
    if fields.use_parallel_adapter:
        places = dict.fromkeys(file.paths, PARALLEL)
    else:
        places = {path: series_kind(file.model, path, file.where) for path in file.paths}
    reads, writes = first = places[file.paths[0]]
    overrides = {
        path.rpartition(".")[2]: {"reads": place[0], "writes": place[1]}
        for path, place in places.items()
        if place != first
    }
    return placement(file.model, file.paths) | {
        "kind": "bottleneck",
        "reads": reads,
        "writes": writes,
        "overrides": overrides,
        "size": fields.bottleneck_size,
        "scale": fields.scaling,
        "dropout": fields.adapter_dropout,
        "act": our_word("non_linearity", fields.non_linearity, ACTS, file.where),
        "init": our_word("init_weights", fields.init_weights, INITS, file.where),
    }


def read_lora(file: File) -> dict:
    """MergedLinear's two LoRAs as one of rank 2 r: B₁ upper left, B₂ lower right, else zeros."""
    fields: LoRAFields = file.fields
    r, tensors = fields.r, file.tensors
    for path in file.paths:
        rows = file.model.get_submodule(path).out_features
        if rows % 3:
            raise file.error(
                f"{path} has {rows} rows, which cannot be a LoRA on the first and the last third "
                "of them"
            )
        third, key = rows // 3, f"{PREFIX}{path}.lora_B.weight"
        if key in tensors:
            B = tensors[key]
            if B.shape != (2 * third, r, 1):
                raise file.error(
                    f"tensor {key!r} is {list(B.shape)}, the configuration asks for "
                    f"{[2 * third, r, 1]}"
                )
            tensors[key] = B.new_zeros(rows, 2 * r)
            tensors[key][:third, :r] = B[:third, :, 0]
            tensors[key][2 * third :, r:] = B[third:, :, 0]
    return placement(file.model, file.paths) | {
        "kind": "lora",
        "r": 2 * r,
        "alpha": 2 * fields.lora_alpha,
        "dropout": fields.lora_dropout,
    }


def targeted(model: LanguageModel, targets, where: str) -> tuple[list[str], list[str]]:
    """(paths of the Linears that target_modules means, in the model's order; names that mean none).

    Raises UserError if none means any.
    """
    linears = [path for path, site in all_sites(model) if isinstance(site, Linear)]
    if isinstance(targets, str):
        paths = [path for path in linears if match(targets, path) is not None]
        absent = [] if paths else [targets]
    elif isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets):
        paths = [path for path in linears if path.endswith(tuple(targets))]
        absent = [name for name in targets if not any(path.endswith(name) for path in linears)]
    else:
        raise UserError(
            f"{where}: target_modules = {targets!r:.100} should name modules, such as "
            '["q_proj", "v_proj"]'
        )
    if not paths:
        raise UserError(f"{where}: {no_such(model, 'target_modules', absent)}")
    return paths, absent


def series_kind(model: LanguageModel, path: str, where: str) -> tuple[str, str]:
    """(reads, writes) of the paper's series adapter at a module. Raises UserError if none."""
    kinds, leaf = KINDS[model.family], path.rpartition(".")[2]
    if leaf not in kinds:
        raise UserError(
            f"{where}: the paper's code has series adapters at {', '.join(kinds)} of a "
            f"{model.family} model and none at {path}"
        )
    return kinds[leaf]


def our_word(key: str, value, known: dict[str, str], where: str) -> str:
    """Our word for a field's value. Raises UserError for an unknown one."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{where}: {unknown(key, value, known)}")
    return known[value]
