"""What stands in an adapter's table, checked by type: options, sites, and lists with a value for each layer."""

import math
from dataclasses import fields, replace

from files.errors import UserError, unknown
from model.config import FAMILIES

PLACEMENT = (
    "kind",
    "preset",
    "sites",
    "layers",
    "overrides",
    "rate",
)  # what is no option of a method


def checked_options(kind: str, options: type, table: dict) -> dict:
    """The options of a method, of the dataclass `options`, with their types checked. Raises UserError naming the nearest."""
    types = {field.name: field.type for field in fields(options)}
    for key in table:
        if key not in types:
            raise unknown(f"option of {kind} adapters", key, [*types, *PLACEMENT])
    return {key: checked_value(key, value, types[key]) for key, value in table.items()}


def checked_value(key: str, value, kind):
    """The value, where it is of this type; whole numbers are floats too, tuples are written as lists. Raises UserError."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and not isinstance(value, kind)
        and isinstance(1.0, kind)
    ):
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"adapter option {key} = {value} is not a finite number")
    for number in value if isinstance(value, list | tuple) else [value]:
        whole = type(number) is int and abs(number) >= (2**63 if key == "seed" else 2**31)
        if whole or (type(number) is float and number != 0 and not 1e-20 < abs(number) < 1e20):
            raise UserError(f"adapter option {key} = {value!r:.100} is out of range")
    if (
        isinstance(value, list)
        and isinstance([], kind)
        and (not value or not all(type(one) is int for one in value))
    ):
        raise UserError(
            f"adapter option {key} = {value!r} should be one whole number, or one for each layer"
        )
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(
            f"adapter option {key} = {value!r:.100} should be {getattr(kind, '__name__', str(kind).replace(' | ', ' or '))}"
        )
    return value


def at_layer(options, index: int, strict: bool = True):
    """The options in the index-th layer: of a list, its element there. Raises UserError where the list is too short."""
    changes = {}
    for key, value in vars(options).items():
        if isinstance(value, list):
            if index >= len(value) and strict:
                raise UserError(
                    f"{key} = {value} has {len(value)} values, one for each layer, and the adapter sits in more layers than that"
                )
            changes[key] = value[min(index, len(value) - 1)]
    return replace(options, **changes)


def sites_from(sites) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """The sites of a table, by family or for all. Raises UserError."""
    if not isinstance(sites, dict):
        return site_names(sites)
    for family in sites:
        if family not in ("any", *FAMILIES):
            raise UserError(
                f"adapter option sites: {unknown('family', family, ['any', *FAMILIES])}"
            )
    if "any" not in sites:
        raise UserError(
            f"adapter option sites = {sites!r} has no 'any', the sites of the families it does not name"
        )
    return {family: site_names(names) for family, names in sites.items()}


def site_names(names) -> tuple[str, ...]:
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(name, str) for name in names)
    ):
        raise UserError(f"adapter option sites = {names!r} should be a list of site names")
    return tuple(names)
