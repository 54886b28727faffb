"""Every method in a tiny size, for tests that hold for all of them."""

from itertools import cycle, product

import torch
from families import TINY

from adapters import attach
from adapters.config import AdapterConfig, presets, resolve
from model.sites import Linear

IDS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(2))
SIZES = {  # kind -> options that make it tiny
    "bottleneck": {"size": 5},
    "lora": {"r": 3, "dropout": 0.0},
    "dora": {"r": 3, "dropout": 0.0},
    "pissa": {"r": 3},
    "eva": {"r": 3, "dropout": 0.0},
    "loftq": {"r": 3},
    "vera": {"r": 8},
    "adalora": {"init_r": 4, "target_r": 2},
    "hira": {"r": 3},
    "miss": {"r": 6},
    "road": {"group_size": 8},
    "oft": {"block": 4},
    "shira": {"r": 2},
    "loreft": {"r": 3, "first": 2, "last": 1},
    "prefix": {"length": 4},
    "prompt": {"length": 4},
    "p_tuning": {"length": 4, "hidden": 6},
}
MORE = {  # what no preset shows
    "bottleneck at the input": {
        "preset": "parallel",
        "writes": "input",
        "sites": {"any": ["up"], "llama": ["gate", "up"]},
        "size": 5,
    },
    "lora everywhere": {
        "kind": "lora",
        "r": 2,
        "sites": {
            "any": ["q", "k", "v", "o", "up", "down"],
            "llama": ["q", "k", "v", "o", "gate", "up", "down"],
            "bloom": ["qkv", "o", "up", "down"],
        },
    },
    "lora on the embedding": {"kind": "lora", "r": 3, "sites": ["embed"]},
    "lora on the head": {"kind": "lora", "r": 3, "sites": ["head"]},
    "sizes by layer": {"preset": "series", "size": [2, 3, 4]},
    "full head": {"kind": "full", "sites": ["head"]},
    "full embedding and norm": {"kind": "full", "sites": ["embed", "final_norm"]},
}
ALONE = [name for name, preset in presets().items() if preset.get("kind") != "fusion"]
ALL = [*ALONE, *MORE, "token rows", "fusion"]
CROSSED = {  # one preset a kind, and what names sites by family: tested in every family
    "parallel",
    "lora",
    "dora",
    "pissa",
    "adalora",
    "vera",
    "ia3",
    "hira",
    "miss",
    "road",
    "oft",
    "shira",
    "loreft",
    "prefix",
    "prompt",
    "p-tuning",
    "invertible",
    "ln-tuning",
    "bitfit",
    "unipelt",
    "fusion",
    "token rows",
    "bottleneck at the input",
    "lora everywhere",
    "full embedding and norm",
}
VARIANTS = {*ALL} - CROSSED  # tested in one family (conftest.py)
# what sees more than the rows of one Linear: tokens, positions, keys, other adapters
BEYOND_A_LINEAR = ["parallel", "prefix", "prompt", "p-tuning", "loreft", "unipelt", "fusion"]
IN_TURN = [
    *product(TINY, BEYOND_A_LINEAR),
    *zip(cycle(TINY), sorted(CROSSED.difference(BEYOND_A_LINEAR))),
    *(("llama", name) for name in ("series", "prefix-projection", "p-tuning-lstm", "mam")),
    *(("llama", name) for name in ("lora-bias", "learned-parallel", "full head")),
    *(("llama", name) for name in ("lora on the embedding", "lora on the head")),
]  # (family, method), for what methods and families share: what differs by options is left out
MERGEABLE = [
    "lora",
    "paper-lora",
    "final-lora",
    "lora-all",
    "rslora",
    "lora-bias",
    "dora",
    "pissa",
    "eva",
    "loftq",
    "adalora",
    "vera",
    "ia3",
    "hira",
    "miss",
    "road",
    "oft",
    "shira",
    "ln-tuning",
    "lora everywhere",
    "lora on the embedding",
    "lora on the head",
    "full head",
    "full embedding and norm",
    "token rows",
]


def table_of(name: str, model) -> dict:
    """The method's complete table in a tiny size."""
    if name in MORE:
        return dict(MORE[name])
    if name == "token rows":
        return {
            "kind": "token_rows",
            "sites": ["embed", "head"] if model.tied else ["embed"],
            "ids": [5, int(IDS[0, 1]), int(IDS[1, 3])],
        }
    if name == "fusion":
        return {"preset": "fusion", "of": ["one", "two"]}
    preset = presets()[name]
    if "kind" in preset:
        return (
            {"preset": name}
            | SIZES.get(preset["kind"], {})
            | ({"projection": 6} if "projection" in preset else {})
        )
    parts = {
        part: {"preset": table["preset"]}
        | table
        | SIZES.get(presets()[table["preset"]]["kind"], {})
        for part, table in preset.items()
    }
    return parts


def attach_small(model, name: str, as_name: str = "default", **changes) -> AdapterConfig:
    """Attach the method in a tiny size; a fusion gets two bottlenecks to fuse."""
    if name == "fusion":
        attach(model, "series", name="one", size=3)
        attach(model, "parallel", name="two", size=3)
        randomise(model)  # members that do something
    table = table_of(name, model)
    return attach(model, resolve(**(table | changes)), as_name)


def randomise(model, size: float = 0.3) -> None:
    """Adapters away from their identity start."""
    generator = torch.Generator().manual_seed(3)
    for site in model.modules():
        for adapter in getattr(site, "adapters", {}).values():
            for parameter in adapter.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = parameter.data + size * noise.to(parameter.device)


def linear_sites(model) -> list[str]:
    """The names of a block's sites that are Linears."""
    block = model.blocks[0]
    return [s for s, at in model.sites.items() if isinstance(block.get_submodule(at), Linear)]
