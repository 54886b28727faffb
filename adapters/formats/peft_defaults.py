"""What PEFT targets where target_modules is null, by model_type (peft/utils/constants.py, 0.21)."""

from torch import nn

ATTENTION = {
    "llama": ["q_proj", "v_proj"],
    "bloom": ["query_key_value"],
    "opt": ["q_proj", "v_proj"],
    "gptj": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
}
FEEDFORWARD = {
    "llama": ["down_proj"],
    "bloom": ["mlp.dense_4h_to_h"],
    "opt": ["fc2"],
    "gptj": ["fc_out"],
    "mistral": ["down_proj"],
    "qwen2": ["down_proj"],
    "qwen3": ["down_proj"],
}
TARGETS = {  # peft_type -> model_type -> target_modules
    "LORA": ATTENTION,
    "VERA": ATTENTION,
    "ADALORA": {name: names for name, names in ATTENTION.items() if name != "mistral"}
    | {"opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]},
    "IA3": {
        "llama": ["k_proj", "v_proj", "down_proj"],
        "bloom": ["query_key_value", "mlp.dense_4h_to_h"],
        "opt": ["q_proj", "k_proj", "fc2"],
        "gptj": ["q_proj", "v_proj", "fc_out"],
        "mistral": ["k_proj", "v_proj", "down_proj"],
        "qwen2": ["q_proj", "v_proj", "down_proj"],
        "qwen3": ["q_proj", "v_proj", "down_proj"],
    },
    "LN_TUNING": {
        "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
        "bloom": ["input_layernorm", "post_attention_layernorm", "ln_f"],
        "gptj": ["ln_1", "ln_f"],
        "mistral": ["input_layernorm", "post_attention_layernorm", "norm"],
        "qwen2": ["post_attention_layernorm"],
        "qwen3": ["post_attention_layernorm"],
    },
}


def model_type(model: nn.Module) -> str:
    """The model_type of its config.json: the family, or a relative in the family's file."""
    return getattr(model.config, "model_type", model.family)


def default_targets(kind: str, model: nn.Module) -> list[str] | None:
    """What PEFT targets for this peft_type and model; None where it asks for target_modules."""
    return TARGETS[kind].get(model_type(model))


def default_feedforward(model: nn.Module) -> list[str]:
    """Which of the targets scale their input in IA3."""
    return FEEDFORWARD[model_type(model)]
