"""The configuration of an adapter: a preset's name and changes to it -> a complete AdapterConfig.

    resolve("lora", r=4)                    a preset and changes
    resolve({"kind": "lora", "sites": ["q", "v"], "r": 4})      a complete table
    resolve("lora+prefix")                  a mixture of presets, a table for each part

`AdapterConfig.to_dict()` is the complete table again: resolve(config.to_dict()) == config.
"""

import importlib
import tomllib
from dataclasses import fields
from functools import cache
from pathlib import Path

from torch import nn

from adapters.base import Adapter
from adapters.parts import PLACEMENT, AdapterConfig, Part
from files.errors import UserError, unknown
from files.typed import typed, typed_values

CLASSES = {  # kind -> its file and class in adapters/methods/; one row a method
    "bottleneck": "bottleneck.Bottleneck",
    "lora": "lora.LoRA",
    "dora": "dora.DoRA",
    "pissa": "pissa.PiSSA",
    "eva": "eva.EVA",
    "loftq": "loftq.LoftQ",
    "adalora": "adalora.AdaLoRA",
    "vera": "vera.VeRA",
    "ia3": "ia3.IA3",
    "hira": "hira.HiRA",
    "miss": "miss.MiSS",
    "road": "road.RoAd",
    "oft": "oft.OFT",
    "shira": "shira.SHiRA",
    "loreft": "loreft.LoReFT",
    "prefix": "prefix.Prefix",
    "prompt": "prompt.Prompt",
    "p_tuning": "p_tuning.PTuning",
    "invertible": "invertible.Invertible",
    "ln_tuning": "ln_tuning.LNTuning",
    "bitfit": "bitfit.BitFit",
    "full": "full.Full",
    "token_rows": "token_rows.TokenRows",
    "fusion": "fusion.Fusion",
}


def load(path: str) -> type[Adapter]:
    """The class of "file.Class" in adapters/methods/."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"adapters.methods.{module}"), name)


METHODS = {kind: load(path) for kind, path in CLASSES.items()}


@cache
def presets() -> dict[str, dict]:
    """The tables of presets.toml by name; not to be changed."""
    return tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))


def independent_presets() -> list[str]:
    """The presets that need nothing beside a base: neither loaded adapters nor quantisation."""
    tables = presets().items()
    return [name for name, t in tables if not METHODS.get(t.get("kind"), Adapter).needs]


def resolve(
    preset: "str | dict | AdapterConfig | None" = None,
    *,
    below: dict[str, dict] | None = None,
    **changes,
) -> AdapterConfig:
    """The complete configuration of a preset, or of a table, with `changes` laid over it.

    A table may name its preset ({"preset": "lora", "r": 4}); a mixture has a table for each part,
    and changes go into these. "lora+prefix" is a mixture of two presets. `below`: tables by
    preset's name that lie over presets.toml (a recipe's). An AdapterConfig is returned as it is.
    Raises UserError for unknown presets, kinds and options and for values of the wrong type.
    """
    if isinstance(preset, AdapterConfig):
        if changes:
            raise UserError(
                f"an AdapterConfig is complete and takes no changes ({', '.join(changes)}): "
                "give a preset's name with them"
            )
        return preset
    below = below or {}
    if isinstance(preset, dict):
        changes = overlay(preset, changes)
        preset = changes.pop("preset", None)
    table = changes if preset is None else over_preset(preset, below, changes)
    if "kind" in table or not table or not all(isinstance(value, dict) for value in table.values()):
        if preset and "kind" not in table:
            parts = list(named(preset, below))
            wrong = next(key for key, value in table.items() if not isinstance(value, dict))
            example = f"{wrong}.rate" if wrong in parts else f"{parts[0]}.{wrong}"
            raise UserError(
                f"adapter {preset} is made of {' and '.join(parts)}, with a table each: set the "
                f"options of one of them, such as {example}, not {wrong!r}"
            )
        return AdapterConfig({"": part_from(table, below)}, preset or "")
    for name in table:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(
                f"adapter: {name!r:.50} cannot name a part: use letters, digits and _, no digit "
                "first, and no name of torch's own"
            )
    if preset and (wrong := sorted(table.keys() - named(preset, below).keys())):
        raise unknown(f"part of adapter {preset}", wrong[0], named(preset, below))
    parts = {name: part_from(of_part, below) for name, of_part in table.items()}
    if len(parts) > 1 and any(part.kind == "fusion" for part in parts.values()):
        raise UserError(
            "a fusion stands alone, it cannot be a part of a mixture: attach the other parts as "
            "another adapter"
        )
    return AdapterConfig(parts, preset or "")


def named(preset: str, below: dict[str, dict]) -> dict:
    """The table of a preset, or of a mixture of several, "lora+prefix". Raises UserError."""
    known = presets()
    if isinstance(preset, str) and "+" in preset and preset not in known:
        names = preset.split("+")
        if len(set(names)) != len(names):
            raise UserError(f"adapter {preset!r} names a preset twice")
        return {name.replace("-", "_"): {"preset": name} for name in names}
    if not isinstance(preset, str) or preset not in known:
        raise unknown("adapter", preset, known)
    return overlay(known[preset], below.get(preset, {}))


def over_preset(preset: str, below: dict[str, dict], changes: dict) -> dict:
    """The preset's table with the changes. Raises UserError for another kind than the preset's."""
    start = named(preset, below)
    if "kind" in start and changes.get("kind", start["kind"]) != start["kind"]:
        raise UserError(
            f"preset {preset} is of the kind {start['kind']}, not {changes['kind']!r:.50}: "
            "give one of both"
        )
    return overlay(start, changes)


def overlay(below: dict, above: dict) -> dict:
    """`above` laid over `below`, table by table."""
    merged = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "sites"
        merged[key] = overlay(merged[key], value) if deeper else value
    return merged


def part_from(table: dict, below: dict[str, dict]) -> Part:
    """One part from its table, which may name a preset. Raises UserError."""
    if "preset" in table:
        preset = table["preset"]
        table = over_preset(preset, below, {k: v for k, v in table.items() if k != "preset"})
        if "kind" not in table:
            raise UserError(f"adapter {preset} is a mixture and cannot be a part of another one")
    for key in ("kind", "sites"):
        if key not in table:
            raise UserError(f"the adapter's configuration has no {key!r}")
    kind = table["kind"]
    if not isinstance(kind, str) or kind not in METHODS:
        raise unknown("adapter kind", kind, METHODS)
    place = {
        f.name: typed(table[f.name], f.type, "adapter", f.name)
        for f in fields(Part)
        if f.name in table and f.name != "options"
    }
    options = {key: value for key, value in table.items() if key not in PLACEMENT}
    place["overrides"] = {
        pattern: typed_options(kind, changes)
        for pattern, changes in place.get("overrides", {}).items()
    }
    part = Part(options=METHODS[kind].Options(**typed_options(kind, options)), **place)
    part.check()
    return part


def typed_options(kind: str, table: dict) -> dict:
    """Options of a method with their types checked. Raises UserError."""
    what = f"option of {kind} adapters"
    values = typed_values(METHODS[kind].Options, table, "adapter", what, PLACEMENT)
    for key, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if type(number) is float and number != 0 and not 1e-20 < abs(number) < 1e20:
                raise UserError(f"adapter: {key} = {value!r:.100} is out of range")
    return values
