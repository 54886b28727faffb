"""What PEFT targets where target_modules is null, by model_type (peft/utils/constants.py, 0.21)."""

from model.language import LanguageModel

QV, FUSED, DOWN = ["q_proj", "v_proj"], ["query_key_value"], ["down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm"]
ATTENTION = dict.fromkeys(("llama", "opt", "gptj", "mistral", "qwen2", "qwen3"), QV)
ATTENTION |= {"bloom": FUSED}
FEEDFORWARD = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), DOWN)
FEEDFORWARD |= {"bloom": ["mlp.dense_4h_to_h"], "opt": ["fc2"], "gptj": ["fc_out"]}
KEYS_VALUES = {  # the attention's part of IA3's
    "llama": ["k_proj", "v_proj"], "bloom": FUSED, "opt": ["q_proj", "k_proj"], "gptj": QV,
    "mistral": ["k_proj", "v_proj"], "qwen2": QV, "qwen3": QV,
}  # fmt: skip
TARGETS = {  # peft_type -> model_type -> target_modules
    **dict.fromkeys(("LORA", "VERA", "HIRA", "MISS", "ROAD", "OFT", "SHIRA"), ATTENTION),
    "ADALORA": {name: names for name, names in ATTENTION.items() if name != "mistral"}
    | {"opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]},
    "IA3": {name: KEYS_VALUES[name] + FEEDFORWARD[name] for name in KEYS_VALUES},
    "LN_TUNING": {
        "llama": [*NORMS, "norm"], "mistral": [*NORMS, "norm"], "bloom": [*NORMS, "ln_f"],
        "gptj": ["ln_1", "ln_f"], "qwen2": NORMS[1:], "qwen3": NORMS[1:],
    },
}  # fmt: skip


def default_targets(kind: str, model: LanguageModel) -> list[str] | None:
    """What PEFT targets for this peft_type and model; None if it asks for target_modules."""
    return TARGETS[kind].get(model.config.model_type)


def default_feedforward(model: LanguageModel) -> list[str]:
    """Which of the targets scale their input in IA3."""
    return FEEDFORWARD[model.config.model_type]
