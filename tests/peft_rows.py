"""Adapters of ours that PEFT has a place for."""

import copy

import torch
from peft_bases import SEEN, randomised

from adapters import attach
from adapters.attach import adapters_named
from adapters.config import resolve
from model import load_model


def attention(family: str) -> list[str]:
    return ["qkv"] if family == "bloom" else ["q", "v"]


# our tables; what they are called in a PEFT file, and whether PEFT reads our own file as it is
OURS = {
    "lora": ({"preset": "lora", "r": 3}, "LORA", True),
    "lora in a layer": ({"preset": "lora", "r": 3, "layers": [1]}, "LORA", True),
    "rslora": ({"preset": "rslora", "r": 3}, "LORA", True),
    "lora-bias": ({"preset": "lora-bias", "r": 3}, "LORA", True),
    "lora by layer": ({"preset": "lora", "r": [2, 3, 4]}, "LORA", True),
    "lora with overrides": (
        {
            "kind": "lora",
            "sites": ["o", "up", "down"],
            "r": 3,
            "overrides": {"down": {"alpha": 5.0}, ".*1.*": {"r": 2}},
        },
        "LORA",
        True,
    ),
    "lora, rslora in places": (
        {"kind": "lora", "sites": ["o", "down"], "r": 3, "overrides": {"down": {"rslora": True}}},
        "LORA",
        True,
    ),
    "lora, biases in places": (
        {"kind": "lora", "sites": ["o", "down"], "r": 3, "overrides": {"down": {"bias": True}}},
        "LORA",
        False,
    ),
    "lora on the embedding": ({"kind": "lora", "sites": ["embed", "o"], "r": 3}, "LORA", True),
    "dora": ({"preset": "dora", "r": 3}, "LORA", True),
    "pissa": ({"preset": "pissa", "r": 3, "alpha": 5.0}, "LORA", False),
    "pissa with biases": ({"preset": "pissa", "r": 3, "alpha": 5.0, "bias": True}, "LORA", False),
    "adalora": ({"preset": "adalora", "init_r": 4, "target_r": 2}, "ADALORA", True),
    "adalora of several ranks": (
        {
            "preset": "adalora",
            "init_r": 4,
            "target_r": 2,
            "overrides": {"down": {"init_r": 3, "alpha": 9.0}},
        },
        "ADALORA",
        False,
    ),
    "vera": ({"preset": "vera", "r": 8, "seed": 5}, "VERA", True),
    "hira": ({"preset": "hira", "r": 3}, "HIRA", True),
    "hira by layer": ({"preset": "hira", "r": [2, 3, 4]}, "HIRA", False),
    "miss": ({"preset": "miss", "r": 6}, "MISS", True),
    "miss in a layer": ({"preset": "miss", "r": 6, "layers": [1]}, "MISS", True),
    "road": ({"preset": "road", "variant": "road_4", "group_size": 8}, "ROAD", True),
    "oft": ({"preset": "oft", "block": 4}, "OFT", True),
    "oft, exact": ({"preset": "oft", "block": 4, "terms": 0}, "OFT", True),
    "shira": ({"preset": "shira", "r": 2, "seed": 3}, "SHIRA", True),
    "shira of large weights": ({"preset": "shira", "r": 2, "mask": "magnitude"}, "SHIRA", True),
    "ia3": ({"preset": "ia3"}, "IA3", True),
    "ia3 in a layer": ({"preset": "ia3", "layers": "last 1"}, "IA3", True),
    "ia3, all inputs": ({"kind": "ia3", "sites": ["o", "down"], "scales": "input"}, "IA3", True),
    "ln-tuning": ({"preset": "ln-tuning"}, "LN_TUNING", True),
    "ln-tuning in a layer": ({"preset": "ln-tuning", "layers": [0]}, "LN_TUNING", True),
    "prefix": ({"preset": "prefix", "length": 4}, "PREFIX_TUNING", True),
    "prefix with a gate": ({"preset": "prefix", "length": 4, "gate": True}, "PREFIX_TUNING", True),
    "prefix-projection": (
        {"preset": "prefix-projection", "length": 4, "projection": 6},
        "PREFIX_TUNING",
        True,
    ),
    "prompt": ({"preset": "prompt", "length": 4, "scale": 2.0}, "PROMPT_TUNING", True),
    "p-tuning": ({"preset": "p-tuning", "length": 4, "hidden": 6}, "P_TUNING", True),
    "p-tuning-lstm": ({"preset": "p-tuning-lstm", "length": 4, "hidden": 6}, "P_TUNING", True),
    "lora and the head": (
        {
            "lora": {"preset": "lora", "r": 3},
            "full": {"kind": "full", "sites": ["head", "final_norm"]},
        },
        "LORA",
        False,
    ),
    "lora and rows": (
        {
            "lora": {"preset": "lora", "r": 3},
            "rows": {"kind": "token_rows", "sites": ["embed"], "ids": SEEN[:3]},
        },
        "LORA",
        False,
    ),
    "lora and its biases": (
        {"lora": {"preset": "lora", "r": 3}, "biases": {"kind": "bitfit", "sites": ["q", "v"]}},
        "LORA",
        False,
    ),
    "dora and all biases": (
        {"dora": {"preset": "dora", "r": 3}, "biases": {"kind": "bitfit", "sites": []}},
        "LORA",
        False,
    ),
}
NO_BIAS = (
    "lora and its biases",
    "dora and all biases",
)  # nothing there in families without biases in Linears


def ours_with(folder, family: str, table: dict):
    """The model with an adapter of this table, its weights random."""
    model = load_model(str(folder))
    table = copy.deepcopy(table)
    if "rows" in table and model.tied:
        table["rows"]["sites"] = ["embed", "head"]
    if "biases" in table:
        paths = [
            path
            for path, module in model.named_modules()
            if getattr(module, "bias", None) is not None
        ]
        table["biases"]["sites"] = paths if not table["biases"]["sites"] else attention(family)
    torch.manual_seed(0)
    attach(model, resolve(**table))
    randomised(
        parameter
        for adapter in adapters_named(model, "default").values()
        for parameter in adapter.parameters()
    )
    return model
