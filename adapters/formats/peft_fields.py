"""The fields of PEFT's adapter_config.json: their types, and which of them are read.

read, or without effect            taken
PEFT's, and not computed here      refused, all of them in one line
none of PEFT's for this kind       passed over with a warning, as PEFT does;
                                   refused where a newer PEFT wrote the file
"""

import re
import warnings
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from torch import Tensor

from files.errors import UserError
from files.typed import Range, typed_values
from model.language import LanguageModel

NEWEST = (0, 21)  # the PEFT whose fields these are; those of all older versions are among them
MERGE = "merge the adapter into its base with PEFT (merge_and_unload) and load the merged model"
INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # of LoRA: the base stays as it was
LARGEST = 2**20
Whole = Annotated[int, Range(1, LARGEST)]
Count = Annotated[int, Range(0, LARGEST)]
Number = Annotated[float, Range(-1e9, 1e9)]


@dataclass(frozen=True)
class Fields:
    """The fields that are read, with PEFT's defaults; null is the default, too."""

    where: str  # the adapter_config.json they are from
    bias: Literal["none", "all", "lora_only", "vera_only", ""] = "none"
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] = ""
    modules_to_save: list[str] = field(default_factory=list)
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] = field(default_factory=list)
    ensure_weight_tying: bool = False
    # LoRA, AdaLoRA, VeRA, IA3
    r: Whole | None = None
    lora_alpha: Number = 8.0
    lora_dropout: Number = 0.0
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict[str, Number] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    init_r: Whole = 12
    target_r: Whole = 8
    tinit: Count = 0
    tfinal: Count = 0
    deltaT: Whole = 1
    beta1: Number = 0.85
    beta2: Number = 0.85
    orth_reg_weight: Number = 0.5
    total_step: Whole = 1000
    vera_dropout: Number = 0.0
    d_initial: Number = 0.1
    projection_prng_key: Annotated[int, Range(0)] = 0
    save_projection: bool = True
    feedforward_modules: str | list[str] | None = None
    # HiRA, MiSS, RoAd, OFT, SHiRA
    hira_dropout: Number = 0.0
    miss_dropout: Number = 0.0
    variant: str = "road_1"
    group_size: Whole = 64
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Count = 5
    random_seed: Annotated[int, Range(0)] = 0
    # soft prompts, rows of the embedding
    num_virtual_tokens: Whole | None = None
    num_transformer_submodules: Whole = 1
    token_indices: list[int] = field(default_factory=list)

    def error(self, name: str, should: str) -> UserError:
        return UserError(f"{self.where}: {name} = {getattr(self, name)!r:.100} {should}")


@dataclass
class File:
    """An adapter file that is being read; readers rename and change its tensors."""

    model: LanguageModel
    fields: Any  # Fields, or those of the paper's files
    tensors: dict[str, Tensor]  # by key
    where: str  # the file of the tensors
    paths: list[str] = field(default_factory=list)  # the modules that have the method

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    @property
    def ends(self) -> tuple[str, str]:
        """The paths of the embedding and the head."""
        return self.model.outer_sites["embed"], self.model.outer_sites["head"]


# Fields of every kind that change nothing in what is computed from a file, or only together with
# one that is refused. PEFT itself takes fan_in_fan_out back at a Linear, and does not look at it
# at an embedding.
NO_EFFECT = set(
    """auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config
    fan_in_fan_out inference_mode init_ia3_weights init_weights loftq_config lora_ga_config
    megatron_core merge_weights peft_type peft_version qalora_group_size revision runtime_config
    task_type""".split()
)
PLACES = {"target_modules", "modules_to_save"}
LAYERS = {"layers_to_transform", "layers_pattern"}
LORA = PLACES | LAYERS
LORA |= set(
    """alpha_pattern bias exclude_modules init_lora_weights lora_alpha lora_bias lora_dropout r
    rank_pattern trainable_token_indices use_rslora""".split()
)
SOFT = set(
    "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens token_dim".split()
)
VERA = set("bias d_initial projection_prng_key r save_projection vera_dropout".split())
OFT = set(
    """eps exclude_modules module_dropout num_cayley_neumann_terms oft_block_size r
    use_cayley_neumann""".split()
)  # PEFT's OFT drops nothing; eps is coft's
PROMPT = set(
    "prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path".split()
)
PARTS = ("dropout", "hidden_size", "num_layers", "reparameterization_type")
FIELDS = {  # peft_type -> the fields that are read, or without effect on this kind alone
    "LORA": LORA | {"use_dora"},
    # use_rslora, alpha_pattern and lora_bias come with PEFT's class and change nothing
    "ADALORA": LORA
    | set("beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step".split()),
    "VERA": PLACES | LAYERS | VERA,
    "HIRA": PLACES | LAYERS | {"exclude_modules", "hira_dropout", "r", "rank_pattern"},
    "MISS": PLACES | LAYERS | {"exclude_modules", "mini_r", "miss_dropout", "r"},
    "ROAD": PLACES | {"group_size", "variant"},
    "OFT": PLACES | LAYERS | OFT,
    "SHIRA": PLACES | {"mask_type", "r", "random_seed"},
    "IA3": PLACES | {"feedforward_modules", "exclude_modules"},
    "LN_TUNING": PLACES | {"exclude_modules"},
    "PREFIX_TUNING": SOFT | {"encoder_hidden_size", "prefix_projection"},
    "PROMPT_TUNING": SOFT | PROMPT,
    "P_TUNING": SOFT | {f"encoder_{name}" for name in PARTS},
    "TRAINABLE_TOKENS": {"token_indices", "target_modules"},
}
OF_LORA = set(
    """alora_invocation_tokens arrow_config enable_lora kasa_config layer_replication
    megatron_config monteclora_config target_parameters use_bdlora use_qalora
    velora_config""".split()
)
NOT_COMPUTED = {  # peft_type -> the fields that PEFT has for it beside those
    "LORA": OF_LORA,
    "ADALORA": OF_LORA | {"use_dora"},
    "MISS": {"bias"},
    "OFT": {"bias", "block_share", "coft"},
    "PREFIX_TUNING": {"modules_to_save"},
    "PROMPT_TUNING": {"modules_to_save"},
    "P_TUNING": {"modules_to_save"},
}


def read_fields(raw: dict, where: str) -> tuple[str, Fields]:
    """(peft_type, fields) of an adapter_config.json.

    Raises UserError for another task, for what is not computed and for values of another type.
    """
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(
            f"{where}: peft_type {kind!r:.100} is not known here; choose from "
            f"{', '.join(FIELDS)}. Where PEFT can merge it, {MERGE}"
        )
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{where}: task_type = {raw['task_type']!r:.100} is not CAUSAL_LM: the adapter was "
            "made for another kind of model (if it was not, write CAUSAL_LM there)"
        )
    raw = checked(raw, where, FIELDS[kind] | NO_EFFECT, NOT_COMPUTED.get(kind, set()), kind)
    used = {f.name for f in fields(Fields)}
    values = {name: value for name, value in raw.items() if name in used and value is not None}
    if kind == "OFT":
        values.pop("r", None)  # 0, or the number of blocks: the tensors tell
    return kind, Fields(where, **typed_values(Fields, values, where))


def known_by_word(raw: dict) -> dict:
    """peft_type and task_type as PEFT writes them: "lora" and "PeftType.LORA" -> "LORA"."""
    return raw | {
        name: raw[name].strip().rpartition(".")[2].upper().replace("-", "_")
        for name in ("peft_type", "task_type")
        if isinstance(raw.get(name), str)
    }


def is_set(value) -> bool:
    """Whether a field says anything: null, false, 0, "none", and a table of such do not."""
    if isinstance(value, dict):
        return any(is_set(inner) for inner in value.values())
    return value not in (None, False, [], "", "none")


def listed(raw: dict, names: list[str]) -> str:
    """These fields with their values, eight at most, in one line."""
    shown = [f"{n if n.isidentifier() else repr(n):.50} = {raw[n]!r:.60}" for n in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def is_newer(version) -> bool:
    """Whether a peft_version is later than the one whose fields are known."""
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return match is not None and (int(match[1]), int(match[2])) > NEWEST


def checked(raw: dict, where: str, known: set[str], not_computed: set[str], kind: str) -> dict:
    """The known fields alone; the others are passed over with a warning where they say anything.

    Raises UserError, naming all of them, for those that change what is computed and are not known.
    """
    refused = [name for name in raw if name in not_computed and is_set(raw[name])]
    start = {"LORA": "init_lora_weights", "MISS": "init_weights"}.get(kind, "")
    altered = kind == "LORA" and raw.get(start) not in INITS
    other = [start] if altered or (kind == "MISS" and raw.get(start) in ("bat", "mini")) else []
    strange = [name for name in raw if name not in known | not_computed and is_set(raw[name])]
    if strange and is_newer(raw.get("peft_version")):
        raise UserError(
            f"{where}: {listed(raw, refused + strange)}: not known here. This file is of PEFT "
            f"{raw['peft_version']!r:.30}, the fields known here are of {NEWEST[0]}.{NEWEST[1]}, so"
            " that they may change what the adapter computes: delete those that are no settings of "
            f"PEFT, or {MERGE}"
        )
    if refused or other:
        names = refused + other
        converted = (
            "init_lora_weights altered the weights of the base: save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, or "
        ) * altered
        raise UserError(
            f"{where}: {listed(raw, names)}: not computed here, and without it the "
            f"{kind} adapter would give other logits; {converted}{MERGE}"
        )
    if strange:
        said = f"{where}: passed over {listed(raw, strange)}: no setting of {kind} adapters"
        warnings.warn(said, stacklevel=2)
    return {name: value for name, value in raw.items() if name in known}
