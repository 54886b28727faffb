"""The fields of PEFT's adapter_config.json: which of them are read, and their types.

read, or without effect            taken
PEFT's, and not computed here      refused, all of them in one line
none of PEFT's for this kind       passed over with a warning, as PEFT does;
                                   refused where a newer PEFT wrote the file
"""

import re
import warnings
from pathlib import Path

from torch import nn

from files.errors import UserError

LARGEST = 2**20  # of ranks, lengths and steps
NEWEST = (0, 21)  # the PEFT whose fields these are; those of all older versions are among them
MERGE = "merge the adapter into its base with PEFT (merge_and_unload) and load the merged model"
# Fields of every kind that change nothing in what is computed from a file, or only together with
# one that is refused. PEFT itself takes fan_in_fan_out back at a Linear, and does not look at it
# at an embedding.
NO_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    "runtime_config",
    "init_weights",
    "init_ia3_weights",
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "merge_weights",
    "fan_in_fan_out",
}
PLACES = {"target_modules", "modules_to_save"}
LAYERS = {"layers_to_transform", "layers_pattern"}
LORA = (
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "bias",
        "rank_pattern",
        "init_lora_weights",
        "exclude_modules",
        "trainable_token_indices",
        "use_rslora",
        "alpha_pattern",
        "lora_bias",
    }
    | PLACES
    | LAYERS
)
SOFT = {
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
}
FIELDS = {  # peft_type -> the fields that are read, or without effect on this kind alone
    "LORA": {"use_dora"} | LORA,
    "ADALORA": {
        "init_r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
    }
    | LORA,  # use_rslora, alpha_pattern and lora_bias come with PEFT's class and change nothing
    "VERA": {"r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", "bias"}
    | PLACES
    | LAYERS,
    "IA3": {"feedforward_modules", "exclude_modules"} | PLACES,
    "LN_TUNING": {"exclude_modules"} | PLACES,
    "PREFIX_TUNING": {"encoder_hidden_size", "prefix_projection"} | SOFT,
    "PROMPT_TUNING": {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
    }
    | SOFT,
    "P_TUNING": {
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
    }
    | SOFT,
    "TRAINABLE_TOKENS": {"token_indices", "target_modules"},
}
OF_LORA = {
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "megatron_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "enable_lora",
}
NOT_COMPUTED = {  # peft_type -> the fields that PEFT has for it beside those
    "LORA": OF_LORA,
    "ADALORA": OF_LORA | {"use_dora"},
    "PREFIX_TUNING": {"modules_to_save"},
    "PROMPT_TUNING": {"modules_to_save"},
    "P_TUNING": {"modules_to_save"},
}
INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # of LoRA: the base stays as it was


def known_by_word(raw: dict) -> dict:
    """peft_type and task_type as PEFT writes them: "lora" and "PeftType.LORA" -> "LORA"."""
    words = {
        name: raw[name].strip().rpartition(".")[2].upper().replace("-", "_")
        for name in ("peft_type", "task_type")
        if isinstance(raw.get(name), str)
    }
    return raw | words


def is_set(value) -> bool:
    """Whether a field says anything: null, false, 0, nothing, and a table of such do not."""
    if isinstance(value, dict):
        return any(is_set(inner) for inner in value.values())
    return value not in (None, False, [], "")


def listed(raw: dict, names: list[str]) -> str:
    """These fields with their values, eight at most, in one line."""
    said = [
        f"{name if name.isidentifier() else repr(name):.50} = {raw[name]!r:.60}"
        for name in names[:8]
    ]
    return ", ".join(said) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def is_newer(version) -> bool:
    """Whether a peft_version is later than the one whose fields are known."""
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return match is not None and (int(match[1]), int(match[2])) > NEWEST


def checked(raw: dict, where: str, known: set[str], not_computed: set[str], kind: str) -> dict:
    """The known fields alone; the others are passed over with a warning where they say anything.

    Raises UserError, naming all of them, for those that change what is computed and are not known.
    """
    refused = [name for name in raw if name in not_computed and is_set(raw[name])]
    altered = kind == "LORA" and raw.get("init_lora_weights") not in INITS
    strange = [name for name in raw if name not in known | not_computed and is_set(raw[name])]
    if strange and is_newer(raw.get("peft_version")):
        raise UserError(
            f"{where}: {listed(raw, refused + strange)}: not known here. This file is of PEFT "
            f"{raw['peft_version']!r:.30}, the fields known here are of {NEWEST[0]}.{NEWEST[1]}, so"
            " that they may change what the adapter computes: delete those that are no settings of "
            f"PEFT, or {MERGE}"
        )
    if refused or altered:
        names = refused + ["init_lora_weights"] * altered
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


class Fields:
    """The fields of an adapter_config.json with their types checked; null and a missing field are the default."""

    def __init__(self, raw: dict, where: str):
        self.raw, self.where = raw, where

    def error(self, name: str, should: str) -> UserError:
        return UserError(f"{self.where}: {name} = {self.raw.get(name)!r:.100} {should}")

    def whole(
        self, name: str, default: int | None = None, low: int = 1, high: int = LARGEST
    ) -> int:
        return self.checked_whole(
            name, default if self.raw.get(name) is None else self.raw[name], low, high
        )

    def checked_whole(self, name: str, value, low: int = 1, high: int = LARGEST) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"should be a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        return self.checked_number(name, default if self.raw.get(name) is None else self.raw[name])

    def checked_number(self, name: str, value) -> float:
        if type(value) not in (int, float) or not abs(value) < 1e9:  # NaN is not below it
            raise self.error(name, "should be a number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = default if self.raw.get(name) is None else self.raw[name]
        if type(value) is not bool:
            raise self.error(name, "should be true or false")
        return value

    def names(self, name: str, text: bool = True) -> str | list[str] | None:
        """A list of names, or (text=True) an expression; None where there is none."""
        value = self.raw.get(name)
        if not value and value in (None, [], ""):
            return None
        if not (text and isinstance(value, str)) and not (
            isinstance(value, list) and all(isinstance(one, str) and one for one in value)
        ):
            raise self.error(
                name, "should be a list of module names" + (" or one expression" if text else "")
            )
        return value

    def table(self, name: str) -> dict:
        value = {} if self.raw.get(name) is None else self.raw[name]
        if not isinstance(value, dict):
            raise self.error(name, "should be a table")
        return value

    def check(self, kind: str) -> None:
        """Keep the known fields. Raises UserError for another task and for what is not computed."""
        if self.raw.get("task_type") not in (None, "CAUSAL_LM"):
            raise self.error(
                "task_type",
                "is not CAUSAL_LM: the adapter was made for another kind "
                "of model (if it was not, write CAUSAL_LM there)",
            )
        known = FIELDS[kind] | NO_EFFECT
        self.raw = checked(self.raw, self.where, known, NOT_COMPUTED.get(kind, set()), kind)


def check_base(model: nn.Module, raw: dict, folder: Path) -> None:
    """Warn where a file of another program does not say which base it is for, or names another one than this model."""
    theirs, ours = raw.get("base_model_name_or_path"), base_name(model)
    if not isinstance(theirs, str) or not theirs:
        warnings.warn(
            f"{folder} does not identify its base model: nothing shows that it was trained on {ours}",
            stacklevel=3,
        )
    elif last_part(theirs) != last_part(ours):
        warnings.warn(
            f"{folder} was trained on {theirs!r:.200}, this model is {ours!r}; such files do not identify their base any further",
            stacklevel=3,
        )


def base_name(model: nn.Module) -> str:
    """The model's hub repository, or its folder where that is not one of the hub's cache; empty of a model without a folder."""
    folder = str(getattr(model, "folder", ""))
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$", folder)
    return cached[1].replace("--", "/", 1) if cached else folder


def last_part(name: str) -> str:
    """Of a path or a hub repository's name, which may be a folder of the hub's cache, in small letters."""
    name = re.split(r"[/\\]", re.sub(r"[/\\]snapshots[/\\][^/\\]+$", "", name.rstrip("/\\")))[-1]
    return (
        name.removeprefix("models--").partition("--")[2] or name
        if name.startswith("models--")
        else name
    ).casefold()
