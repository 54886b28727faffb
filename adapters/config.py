"""The configuration of an adapter: a preset's name and changes to it -> a checked, complete AdapterConfig."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from adapters.bottleneck import Bottleneck
from adapters.lora import LoRA
from model.errors import UserError, unknown
from model.load import FAMILIES

METHODS = {"bottleneck": Bottleneck, "lora": LoRA}  # kind -> class; one row a method
PLACEMENT = ("kind", "sites", "layers")


@dataclass(frozen=True)
class AdapterConfig:
    """Which method, where, and with which of its own options."""

    kind: str
    sites: tuple[str, ...] | dict[str, tuple[str, ...]]  # a dict holds them by family, under "any" those of all others
    layers: str | tuple[int, ...]  # "all", "first 8", "last 8", or layer numbers from 0
    options: object

    def on(self, family: str) -> "AdapterConfig":
        """The same with the sites of one family."""
        return replace(self, sites=self.sites.get(family, self.sites["any"])) if isinstance(self.sites, dict) else self

    def table(self) -> dict:
        """As one TOML table; `resolve` gives the same AdapterConfig back."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        sites = {family: list(names) for family, names in self.sites.items()} if isinstance(self.sites, dict) else list(self.sites)
        return {"kind": self.kind, "sites": sites, "layers": layers, **asdict(self.options)}


def presets() -> dict[str, dict]:
    """The tables of presets.toml by name."""
    return tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))


def resolve(preset: str | None = None, **changes) -> AdapterConfig:
    """A preset's table with `changes` laid over it (or, without a preset, a complete table) -> AdapterConfig.

    Raises UserError for unknown presets, kinds and options (naming the nearest) and for values of the wrong type.
    """
    known = presets()
    if preset is not None and (not isinstance(preset, str) or preset not in known):
        raise unknown("adapter", preset, known)
    table = {"layers": "all", **(known[preset] if preset else {}), **changes}
    for key in ("kind", "sites"):
        if key not in table:
            raise UserError(f"the adapter's configuration has no {key!r}")
    if not isinstance(table["kind"], str) or table["kind"] not in METHODS:
        raise unknown("adapter kind", table["kind"], METHODS)
    method = METHODS[table["kind"]]
    types = {field.name: field.type for field in fields(method.Options)}
    options = {}
    for key, value in table.items():
        if key in PLACEMENT:
            continue
        if key not in types:
            raise unknown(f"option of {table['kind']} adapters", key, [*types, *PLACEMENT])
        if types[key] is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"adapter option {key} = {value} is not a finite number")
        if not isinstance(value, types[key]) or (isinstance(value, bool) and types[key] is not bool):
            raise UserError(f"adapter option {key} = {value!r} should be {types[key].__name__}")
        options[key] = value
    sites, layers = table["sites"], table["layers"]
    if isinstance(sites, dict):
        for family in sites:
            if family not in ("any", *FAMILIES):
                raise UserError(f"adapter option sites: {unknown('family', family, ['any', *FAMILIES])}")
        if "any" not in sites:
            raise UserError(f"adapter option sites = {sites!r} has no 'any', the sites of the families it does not name")
        sites = {family: site_names(names) for family, names in sites.items()}
    else:
        sites = site_names(sites)
    if not isinstance(layers, str | list | tuple):
        raise UserError(f'adapter option layers = {layers!r} should be "all", "first n", "last n" or a list of numbers')
    config = AdapterConfig(table["kind"], sites, layers if isinstance(layers, str) else tuple(layers), method.Options(**options))
    config.options.check()
    return config


def site_names(names) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"adapter option sites = {names!r} should be a list of site names")
    return tuple(names)


def layer_numbers(layers: str | tuple[int, ...], count: int) -> list[int]:
    """"all", "first n", "last n" or numbers -> layer numbers of a model with `count` layers. Raises UserError when out of range."""
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str):
        side, _, number = layers.partition(" ")
        if side not in ("first", "last") or not (number.isascii() and number.isdigit()) or not 0 < int(number) <= count:
            raise UserError(f'layers = {layers!r} should be "all", "first n", "last n" (n from 1 to {count}) or a list of numbers')
        return list(range(count))[: int(number)] if side == "first" else list(range(count))[-int(number) :]
    wrong = [layer for layer in layers if type(layer) is not int or not 0 <= layer < count]
    if wrong or not layers:
        raise UserError(f"layers = {list(layers)!r}: the model has layers 0 to {count - 1}")
    return list(layers)
