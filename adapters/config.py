"""The configuration of an adapter: a preset's name and changes to it -> a checked, complete AdapterConfig."""

import importlib
import re
import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import nn

from adapters.base import Adapter
from adapters.options import PLACEMENT, at_layer, checked_options, checked_value, sites_from
from files.errors import UserError, unknown


def load(path: str) -> type[Adapter]:
    """ "lora.LoRA" -> the class LoRA of adapters/methods/lora.py."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"adapters.methods.{module}"), name)


METHODS = {
    kind: load(path)
    for kind, path in {  # kind -> class; one row a method
        "bottleneck": "bottleneck.Bottleneck",
        "lora": "lora.LoRA",
        "dora": "dora.DoRA",
        "pissa": "pissa.PiSSA",
        "adalora": "adalora.AdaLoRA",
        "vera": "vera.VeRA",
        "ia3": "ia3.IA3",
        "prefix": "prefix.Prefix",
        "prompt": "prompt.Prompt",
        "p_tuning": "p_tuning.PTuning",
        "invertible": "invertible.Invertible",
        "ln_tuning": "ln_tuning.LNTuning",
        "bitfit": "bitfit.BitFit",
        "full": "full.Full",
        "token_rows": "token_rows.TokenRows",
        "fusion": "fusion.Fusion",
    }.items()
}


@dataclass(frozen=True)
class Part:
    """One method, where, and with which of its own options."""

    kind: str
    sites: (
        tuple[str, ...] | dict[str, tuple[str, ...]]
    )  # a dict holds them by family, under "any" those of all others
    layers: str | tuple[int, ...]  # "all", "first 8", "last 8", or layer numbers from 0
    options: object
    overrides: dict[str, dict] = field(
        default_factory=dict
    )  # a site, or a pattern of module paths -> options that differ there
    rate: float = 1.0  # its learning rate, as a multiple of the run's

    def on(self, family: str) -> "Part":
        """The same with the sites of one family."""
        return (
            replace(self, sites=self.sites.get(family, self.sites["any"]))
            if isinstance(self.sites, dict)
            else self
        )

    def options_at(self, path: str, site: str, index: int):
        """The options at one place: the site of this name and path, in the index-th of the layers. Of several overrides for one option, the
        first that fits counts."""
        changes: dict = {}
        for pattern, table in self.overrides.items():
            if self.fits(pattern, path, site):
                changes = table | changes
        return at_layer(replace(self.options, **changes), index)

    @staticmethod
    def fits(pattern: str, path: str, site: str) -> bool:
        """Whether a key of `overrides` means the site of this name and path."""
        return pattern == site or re.fullmatch(whole_pattern(pattern), path) is not None

    def table(self) -> dict:
        """As one TOML table."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        sites = (
            {family: list(names) for family, names in self.sites.items()}
            if isinstance(self.sites, dict)
            else list(self.sites)
        )
        more = ({"overrides": self.overrides} if self.overrides else {}) | (
            {"rate": self.rate} if self.rate != 1.0 else {}
        )
        options = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self.options).items()
        }
        return {"kind": self.kind, "sites": sites, "layers": layers, **more, **options}


@dataclass(frozen=True)
class AdapterConfig:
    """The parts of an adapter by name. One of a single method has one part, without a name."""

    parts: dict[str, Part]

    def on(self, family: str) -> "AdapterConfig":
        return AdapterConfig({name: part.on(family) for name, part in self.parts.items()})

    @property
    def kind(self) -> str:
        """The method, or those of a mixture: "prefix + bottleneck"."""
        return " + ".join(dict.fromkeys(part.kind for part in self.parts.values()))

    @property
    def only(self) -> Part | None:
        """The part of an adapter that has one."""
        return next(iter(self.parts.values())) if len(self.parts) == 1 else None

    def table(self) -> dict:
        """As TOML: one table, or one for each part; `resolve` gives the same AdapterConfig back."""
        return (
            self.only.table()
            if self.only
            else {name: part.table() for name, part in self.parts.items()}
        )

    def place(self) -> str:
        """Where it is, in words: "q, v, layers all"."""
        return "; ".join(
            f"{', '.join(shorten(part.sites))}, layers {part.layers if isinstance(part.layers, str) else list(part.layers)}"
            for part in self.parts.values()
        )


def whole_pattern(pattern: str) -> str:
    """The expression that a whole path has to fit: it ends with the pattern, behind a dot."""
    return rf"(?:.*\.)?(?:{pattern})"


def shorten(names: tuple[str, ...]) -> tuple[str, ...]:
    return names if len(names) <= 12 else (*names[:3], f"... {len(names)} in all")


def presets() -> dict[str, dict]:
    """The tables of presets.toml by name."""
    return tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))


def resolve(
    preset: str | None = None, *, below: dict[str, dict] | None = None, **changes
) -> AdapterConfig:
    """A preset's table with `changes` laid over it (or, without a preset, a complete table) -> AdapterConfig.

    `below` holds tables that a recipe lays over presets. A mixture has a table for each part, and changes go into these. "lora+prefix" is a mixture
    of these two presets. Raises UserError for unknown presets, kinds and options (naming the nearest) and for values of the wrong type.
    """
    start = named(preset, below or {}) if preset is not None else {}
    same_kind(preset, start, changes)
    table = overlay(start, changes)
    if (
        "kind" in table
        or "preset" in table
        or not table
        or not all(isinstance(value, dict) for value in table.values())
    ):
        if preset and "kind" not in table and "preset" not in table:
            parts = list(start)
            wrong = next(key for key, value in table.items() if not isinstance(value, dict))
            hint = (
                f"set its options, such as {wrong}.rate"
                if wrong in parts
                else f"say whose option it is, such as {parts[0]}.{wrong}"
            )
            raise UserError(
                f"adapter {preset} is made of {' and '.join(parts)}, a table each, and {wrong!r} is none: {hint}"
            )
        return AdapterConfig({"": part_from(table, below or {})})
    for name in table:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(
                f"the parts of an adapter are named in letters, digits and _, and no word of torch's own, not {name!r:.50}"
            )
    if preset is not None and (wrong := table.keys() - start.keys()):
        raise unknown(f"part of adapter {preset}", sorted(wrong)[0], start)
    made = AdapterConfig({name: part_from(one, below or {}) for name, one in table.items()})
    if len(made.parts) > 1 and any(part.kind == "fusion" for part in made.parts.values()):
        raise UserError(
            "a fusion stands alone, it cannot be a part of a mixture: attach the other parts as another adapter"
        )
    return made


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


def same_kind(preset: str | None, start: dict, changes: dict) -> None:
    """Raises UserError for a kind that is not the preset's."""
    if "kind" in start and changes.get("kind", start["kind"]) != start["kind"]:
        raise UserError(
            f"preset {preset} is of the kind {start['kind']}, not {changes['kind']!r:.50}: give one of both"
        )


def overlay(below: dict, above: dict) -> dict:
    """`above` laid over `below`, table by table."""
    merged = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "sites"
        merged[key] = overlay(merged[key], value) if deeper else value
    return merged


def part_from(table: dict, below: dict[str, dict]) -> Part:
    """One part from its table; `preset` in it names the table that lies below. Raises UserError."""
    if "preset" in table:
        start = named(table["preset"], below)
        same_kind(table["preset"], start, table)
        if "kind" not in start:
            raise UserError(
                f"adapter {table['preset']} is a mixture and cannot be a part of another one"
            )
        table = overlay(start, {key: value for key, value in table.items() if key != "preset"})
    table = {"layers": "all"} | table
    if "kind" not in table:
        raise UserError("the adapter's configuration has no 'kind'")
    if not isinstance(table["kind"], str) or table["kind"] not in METHODS:
        raise unknown("adapter kind", table["kind"], METHODS)
    if "sites" not in table:
        raise UserError("the adapter's configuration has no 'sites'")
    kind, method = table["kind"], METHODS[table["kind"]]
    options = method.Options(
        **checked_options(
            kind,
            method.Options,
            {key: value for key, value in table.items() if key not in PLACEMENT},
        )
    )
    overrides = table.get("overrides", {})
    if not isinstance(overrides, dict) or not all(
        isinstance(one, dict) for one in overrides.values()
    ):
        raise UserError(
            f"adapter option overrides = {overrides!r:.100} should hold tables, such as overrides.down = {{ r = 4 }}"
        )
    overrides = {
        pattern: checked_options(kind, method.Options, one) for pattern, one in overrides.items()
    }
    for pattern in overrides:
        try:
            re.compile(whole_pattern(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"adapter option overrides: {pattern!r} is neither a site nor a pattern ({error})"
            ) from None
    sites, layers = sites_from(table["sites"]), table["layers"]
    if not isinstance(layers, str | list | tuple):
        raise UserError(
            f'adapter option layers = {layers!r} should be "all", "first n", "last n" or a list of numbers'
        )
    rate = checked_value("rate", table.get("rate", 1.0), float)
    if rate <= 0:
        raise UserError(f"adapter option rate = {rate} must be positive")
    for one in [options, *(replace(options, **changes) for changes in overrides.values())]:
        lists = [value for value in vars(one).values() if isinstance(value, list)]
        for index in range(max(map(len, lists), default=1)):
            at_layer(one, index, strict=False).check()
    return Part(
        kind, sites, layers if isinstance(layers, str) else tuple(layers), options, overrides, rate
    )


def layer_numbers(layers: str | tuple[int, ...], count: int) -> list[int]:
    """ "all", "first n", "last n" or numbers -> layer numbers of a model with `count` layers. Raises UserError when out of range."""
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str):
        side, _, number = layers.partition(" ")
        if (
            side not in ("first", "last")
            or not (number.isascii() and number.isdigit())
            or not 0 < int(number) <= count
        ):
            raise UserError(
                f'layers = {layers!r} should be "all", "first n", "last n" (n from 1 to {count}) or a list of numbers'
            )
        return (
            list(range(count))[: int(number)]
            if side == "first"
            else list(range(count))[-int(number) :]
        )
    wrong = [layer for layer in layers if type(layer) is not int or not 0 <= layer < count]
    if wrong or not layers:
        raise UserError(f"layers = {list(layers)!r}: the model has layers 0 to {count - 1}")
    return list(layers)
