"""An adapter's configuration: its parts, each with a method, a place and options.

Made by `resolve` (adapters/config.py).
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated

from files.errors import UserError, unknown
from files.patterns import match
from files.typed import Range
from model.config import FAMILIES


@dataclass(frozen=True)
class Part:
    """One method, where it sits, and its options."""

    kind: str
    options: object  # METHODS[kind].Options
    sites: tuple[str, ...] | dict[str, tuple[str, ...]]  # a dict: by family, "any" for the others
    layers: str | tuple[int, ...] = "all"  # "all", "first 8", "last 8", or numbers from 0
    # a site, or a pattern of module paths -> options that differ there
    overrides: dict[str, dict] = field(default_factory=dict)
    rate: Annotated[float, Range(0, open=True)] = 1.0  # a multiple of the run's learning rate

    def on(self, family: str) -> "Part":
        """The same with the sites of one family."""
        if isinstance(self.sites, tuple):
            return self
        return replace(self, sites=self.sites.get(family, self.sites["any"]))

    def options_at(self, path: str, site: str, index: int):
        """The options at the site of this name and path, in the index-th of the layers.

        If several overrides set one option, the first that fits wins. A list holds a value for
        each layer.
        """
        changes: dict = {}
        for pattern, table in self.overrides.items():
            if self.fits(pattern, path, site):
                changes = table | changes
        options = replace(self.options, **changes)
        by_layer = {key: value for key, value in vars(options).items() if isinstance(value, list)}
        return replace(options, **{key: value[index] for key, value in by_layer.items()})

    @staticmethod
    def fits(pattern: str, path: str, site: str) -> bool:
        """Whether a key of `overrides` means the site of this name and path."""
        return pattern == site or fits_end(pattern, path)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if not self.sites:
            raise UserError("adapter: sites = [] names no site")
        if isinstance(self.sites, dict):
            known = ["any", *FAMILIES]
            for family in self.sites:
                if family not in known:
                    raise UserError(f"adapter: sites: {unknown('family', family, known)}")
            if "any" not in self.sites:
                raise UserError("adapter: sites has no 'any', the sites of all other families")
        for pattern in self.overrides:
            try:
                fits_end(pattern, "")
            except UserError as error:
                wrong = f"adapter: overrides: {pattern!r:.100} is neither a site nor a pattern"
                raise UserError(f"{wrong} ({error})") from None
        for changes in ({}, *self.overrides.values()):
            check_options(replace(self.options, **changes))

    def table(self) -> dict:
        """As one TOML table."""
        table = {"kind": self.kind, "sites": self.sites, "layers": self.layers}
        table |= {"overrides": self.overrides} if self.overrides else {}
        table |= {"rate": self.rate} if self.rate != 1.0 else {}
        return as_lists(table | asdict(self.options))


PLACEMENT = ("preset", *(f.name for f in fields(Part) if f.name != "options"))  # no method's option


@dataclass(frozen=True)
class AdapterConfig:
    """The parts of an adapter by name. An adapter of a single method has one part, named ""."""

    parts: dict[str, Part]
    preset: str = field(default="", compare=False)  # what it was made from, if that is known

    def on(self, family: str) -> "AdapterConfig":
        """The same with the sites of one family."""
        return replace(self, parts={name: part.on(family) for name, part in self.parts.items()})

    @property
    def kind(self) -> str:
        """The method, or those of a mixture: "prefix + bottleneck"."""
        return " + ".join(dict.fromkeys(part.kind for part in self.parts.values()))

    @property
    def only(self) -> Part | None:
        """The part of an adapter that has a single one."""
        return next(iter(self.parts.values())) if len(self.parts) == 1 else None

    def table(self) -> dict:
        """The complete table, or one for each part, without the preset's name."""
        if self.only:
            return self.only.table()
        return {name: part.table() for name, part in self.parts.items()}

    def to_dict(self) -> dict:
        """The complete table with the preset's name: resolve(config.to_dict()) == config."""
        return ({"preset": self.preset} if self.preset else {}) | self.table()

    def place(self) -> str:
        """Where it is, for a person: "q, v, layers all"."""
        return "; ".join(
            f"{', '.join(shorten(part.sites))}, layers "
            f"{part.layers if isinstance(part.layers, str) else list(part.layers)}"
            for part in self.parts.values()
        )


def as_lists(value):
    """The value with lists in place of tuples, also within."""
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def fits_end(pattern: str, path: str) -> bool:
    """Whether the pattern fits a path, or its end after a dot. Raises UserError."""
    return match(pattern, path, r"(?:.*\.)?(?:", ")") is not None


def shorten(names: tuple[str, ...]) -> tuple[str, ...]:
    return names if len(names) <= 12 else (*names[:3], f"... {len(names)} in all")


def check_options(options) -> None:
    """Ask the options whether their values go together, if they have something to check."""
    if hasattr(options, "check"):
        options.check()


def layer_numbers(layers: str | tuple[int, ...], count: int) -> list[int]:
    """The numbers of "all", "first n", "last n" or of a list, in a model with `count` layers.

    Raises UserError for a layer that the model does not have.
    """
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str):
        side, _, number = layers.partition(" ")
        n = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
        if side not in ("first", "last") or not 0 < n <= count:
            raise UserError(
                f'layers = {layers!r:.100} should be "all", "first n", "last n" (n from 1 to '
                f"{count}) or a list of numbers"
            )
        return list(range(n)) if side == "first" else list(range(count - n, count))
    if not layers or not all(type(layer) is int and 0 <= layer < count for layer in layers):
        raise UserError(f"layers = {list(layers)!r}: the model has layers 0 to {count - 1}")
    return list(layers)
