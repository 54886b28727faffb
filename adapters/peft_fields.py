"""The fields of PEFT's adapter_config.json: which of them are known here, and their types.

A field that changes the computation and is not known here is refused when it is set: better no adapter than another one.
"""

import re
import warnings
from pathlib import Path

from torch import nn

from model.errors import UserError

LARGEST = 2**20  # of ranks, lengths and steps
# Fields that change nothing in what is computed from a file, or only together with one that is refused.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type", "runtime_config", "init_weights",
    "init_ia3_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
    "merge_weights",
}
PLACES = {"target_modules", "exclude_modules", "modules_to_save"}
LAYERS = {"layers_to_transform", "layers_pattern"}
LORA = {"r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "init_lora_weights"} | PLACES | LAYERS
SOFT = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
FIELDS = {  # peft_type -> the fields that are read or known to be without effect
    "LORA": {"use_rslora", "use_dora", "lora_bias", "alpha_pattern", "trainable_token_indices"} | LORA,
    "ADALORA": {"init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"} | LORA,
    "VERA": {"r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", "bias"} | PLACES | LAYERS,
    "IA3": {"feedforward_modules"} | PLACES,
    "LN_TUNING": PLACES,
    "PREFIX_TUNING": {"encoder_hidden_size", "prefix_projection"} | SOFT,
    "PROMPT_TUNING": {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"} | SOFT,
    "P_TUNING": {"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"} | SOFT,
}


class Fields:
    """The fields of an adapter_config.json with their types checked; null and a missing field are the default."""

    def __init__(self, raw: dict, where: str):
        self.raw, self.where = raw, where

    def error(self, name: str, should: str) -> UserError:
        return UserError(f"{self.where}: {name} = {self.raw.get(name)!r:.100} {should}")

    def whole(self, name: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        return self.checked_whole(name, default if self.raw.get(name) is None else self.raw[name], low, high)

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
        if not (text and isinstance(value, str)) and not (isinstance(value, list) and all(isinstance(one, str) and one for one in value)):
            raise self.error(name, "should be a list of module names" + (" or one expression" if text else ""))
        return value

    def table(self, name: str) -> dict:
        value = {} if self.raw.get(name) is None else self.raw[name]
        if not isinstance(value, dict):
            raise self.error(name, "should be a table")
        return value

    def check(self, kind: str) -> None:
        """Raises UserError for another task, and for a field that is set and not known."""
        if self.raw.get("task_type") not in (None, "CAUSAL_LM"):
            raise self.error("task_type", "is not CAUSAL_LM: the adapter was made for another kind of model")
        for name, value in self.raw.items():
            if name not in FIELDS[kind] | HARMLESS and value not in (None, False, [], {}, ""):
                raise self.error(name, f"is a setting of {kind} adapters that is not known here and may change what they compute")


def check_base(model: nn.Module, raw: dict, folder: Path) -> None:
    """Warn where a file of another program does not say which base it is for, or names another one than this model."""
    theirs, ours = raw.get("base_model_name_or_path"), base_name(model)
    if not isinstance(theirs, str) or not theirs:
        warnings.warn(f"{folder} does not identify its base model: nothing shows that it was trained on {ours}", stacklevel=3)
    elif last_part(theirs) != last_part(ours):
        warnings.warn(f"{folder} was trained on {theirs!r:.200}, this model is {ours!r}; such files do not identify their base any further", stacklevel=3)


def base_name(model: nn.Module) -> str:
    """The model's hub repository, or its folder where that is not one of the hub's cache; empty of a model without a folder."""
    folder = str(getattr(model, "folder", ""))
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$", folder)
    return cached[1].replace("--", "/", 1) if cached else folder


def last_part(name: str) -> str:
    """Of a path or a hub repository's name, which may be a folder of the hub's cache, in small letters."""
    name = re.split(r"[/\\]", re.sub(r"[/\\]snapshots[/\\][^/\\]+$", "", name.rstrip("/\\")))[-1]
    return (name.removeprefix("models--").partition("--")[2] or name if name.startswith("models--") else name).casefold()
