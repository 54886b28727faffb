"""Tiny configurations of the four families, one for each thing published checkpoints do differently."""

import torch

COMMON = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

TINY = {
    "llama": {
        **COMMON,
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "bloom": {**COMMON, "model_type": "bloom", "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "opt": {
        **COMMON,
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "gptj": {
        **COMMON,
        "model_type": "gptj",
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "rotary_dim": 4,
        "n_positions": 64,
    },
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

MISTRAL = {"model_type": "mistral", "sliding_window": 4}
QWEN2 = {"model_type": "qwen2"}
QWEN3 = {"model_type": "qwen3", "head_dim": 12}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS = {
    "llama": {
        "grouped heads": {},
        "one head each": {"num_key_value_heads": None},
        "multi-query": {"num_key_value_heads": 1},
        "explicit head_dim": {"head_dim": 12},
        "head size no power of two": {"hidden_size": 40},
        "attention biases": {"attention_bias": True},
        "mlp biases": {"mlp_bias": True},
        "tied head": {"tie_word_embeddings": True},
        "theta": {"rope_theta": 500000},
        "eps": {"rms_norm_eps": 0.1},
        "gelu": {"hidden_act": "gelu"},
        "gelu_new": {"hidden_act": "gelu_new"},
        "rope linear, old spelling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "rope linear, new spelling": {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        },
        "rope llama3": {"rope_scaling": LLAMA3},
        "rope llama3, length of the config": {
            "rope_scaling": {
                k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"
            }
        },
        "rope yarn": {"rope_scaling": YARN},
        "rope yarn, attention factor": {"rope_scaling": YARN | {"attention_factor": 1.7}},
        "rope yarn, mscale": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
        "rope yarn, beta_fast": {
            "rope_scaling": YARN
            | {"original_max_position_embeddings": 64, "beta_fast": 2, "truncate": False}
        },
        "rope yarn, beta_slow": {
            "rope_scaling": YARN
            | {"original_max_position_embeddings": 64, "beta_slow": 0.25, "truncate": False}
        },
        "rope yarn, not truncated": {
            "rope_parameters": YARN | {"beta_fast": 2, "truncate": False, "rope_theta": 10000.0}
        },
        "rope dynamic": {
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 5,
        },
        "theta inside": {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
        "theta inside wins": {
            "rope_theta": 5.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 777.0},
        },
        "mistral": MISTRAL,
        "mistral, explicit head_dim": MISTRAL | {"head_dim": 12, "sliding_window": 2},
        "mistral, a window longer than the text": {"model_type": "mistral"},
        "qwen2": QWEN2,
        "qwen2, tied": QWEN2 | {"tie_word_embeddings": True},
        "qwen2, windows from a layer on": QWEN2 | WINDOW | {"max_window_layers": 1},
        "qwen2, windows in named layers": QWEN2 | WINDOW | {"layer_types": LAYER_TYPES},
        "qwen2, windows off": QWEN2 | WINDOW | {"use_sliding_window": False},
        "qwen3": QWEN3,
        "qwen3, tied, with biases": QWEN3 | {"tie_word_embeddings": True, "attention_bias": True},
        "qwen3, windows in every layer": QWEN3 | WINDOW | {"max_window_layers": 0},
    },
    "bloom": {
        "plain": {},
        "odd count of heads": {"hidden_size": 40, "n_head": 5},
        "seven heads": {"hidden_size": 56, "n_head": 7},
        "one head": {"n_head": 1},
        "two heads": {"n_head": 2},
        "many heads": {"n_head": 16},
        "head size no power of two": {"hidden_size": 60},
        "residual behind the norm": {"apply_residual_connection_post_layernorm": True},
        "untied head": {"tie_word_embeddings": False},
        "eps": {"layer_norm_epsilon": 0.1},
        "n_embed": {"hidden_size": None, "n_embed": 32},
        "long names": {
            "n_layer": None,
            "n_head": None,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        "fields that change nothing": {
            "pretraining_tp": 4,
            "offset_alibi": 100,
            "skip_bias_add": True,
            "masked_softmax_fusion": True,
        },
    },
    "opt": {
        "plain": {},
        "norms behind the add (opt-350m)": {"do_layer_norm_before": False},
        "projections": {"word_embed_proj_dim": 20},
        "opt-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        "no last norm": {"_remove_final_layer_norm": True},
        "no biases": {"enable_bias": False},
        "norms without weights": {"layer_norm_elementwise_affine": False},
        "galactica": {
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
        },
        "gelu": {"activation_function": "gelu"},
        "untied head": {"tie_word_embeddings": False},
        "head size no power of two": {"hidden_size": 60},
        "one head": {"num_attention_heads": 1},
        "embedding size said": {"word_embed_proj_dim": 32},
    },
    "gptj": {
        "plain": {},
        "the whole head rotates": {"rotary_dim": 8},
        "one pair rotates": {"rotary_dim": 2},
        "tied head with a bias": {"tie_word_embeddings": True},
        "n_inner": {"n_inner": 40},
        "gelu": {"activation_function": "gelu"},
        "relu": {"activation_function": "relu"},
        "eps": {"layer_norm_epsilon": 0.1},
        "head size no power of two": {"n_embd": 60, "rotary_dim": 6},
        "one head": {"n_head": 1, "rotary_dim": 16},
        "two heads": {"n_head": 2},
        "long names": {
            "n_layer": None,
            "n_head": None,
            "n_embd": None,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_size": 32,
        },
    },
}

ALL = [(family, name) for family, configs in CONFIGS.items() for name in configs]
SIDES = ["plain", "left", "right", "holes"]


def config_of(family: str, **changes) -> dict:
    """The tiny config.json of a family with some fields changed; None leaves a field out."""
    return {key: value for key, value in (TINY[family] | changes).items() if value is not None}


def batch(side: str, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of ids and their mask: nothing padded, left, right, or zeros inside."""
    ids = torch.randint(3, 61, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 3, 6)):
        if side == "left":
            mask[row, :pads] = 0
        if side == "right" and pads:
            mask[row, -pads:] = 0
        if side == "holes" and pads:
            mask[row, 1 : 1 + pads // 2] = 0
            mask[row, -2] = 0
    return ids * mask, mask


def difference(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> float:
    """Largest difference over real tokens, in standard deviations of the logits."""
    real = mask.bool()
    return ((ours - theirs)[real].abs().max() / theirs[real].std()).item()


def crossed(rows, everywhere) -> list[tuple[str, str]]:
    """(family, row): the rows of `everywhere` in all four families, each other one in one of them."""
    families = list(TINY)
    return [
        (family, row)
        for number, row in enumerate(rows)
        for family in (families if row in everywhere else [families[number % 4]])
    ]
