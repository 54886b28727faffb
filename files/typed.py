"""Tables of files as typed values: a dict becomes a frozen dataclass, checked by its annotations.

    int  float  bool  str  dict  Any       a bool is no number; a whole number is a float, too
    list[T]  tuple[A, B]  tuple[T, ...]    lists of such values (a table of TOML or JSON has lists)
    dict[str, T]                           a table of such values
    Literal["a", "b"]                      one of these
    A | B  A | None                        the first that fits
    Annotated[int, Range(1)]               a number from 1 on
    another dataclass                      a table with its fields

What a dataclass cannot say by types it checks in its own method `check()`, which raises UserError.
"""

import math
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from files.errors import UserError, unknown

T = TypeVar("T")
NAMES = {  # type -> what a value of it is called, and several of them
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
    list: ("a list", "lists"),
    tuple: ("a list", "lists"),
    dict: ("a table", "tables"),
    NoneType: ("null", "null"),
    Any: ("any value", "any values"),
}


@dataclass(frozen=True)
class Range:
    """Annotated[float, Range(0, 1)]: low <= number <= high; open=True: low < number <= high."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.open else self.low <= number) and number <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.open else 'from'} {self.low:,}" if self.low > -math.inf else ""
        high = f"up to {self.high:,}" if self.high < math.inf else ""
        return " ".join(part for part in (low, high) if part)


def from_table(cls: type[T], table: dict, where: str, what: str = "setting") -> T:
    """The dataclass `cls` from a table; fields that the table leaves out have their defaults.

    where: the file or option the table comes from, what: what a key is called; both for messages.
    Raises UserError for an unknown key, a value of another type and a field without a default that
    is missing, and whatever the dataclass's own `check()` raises.
    """
    values = typed_values(cls, table, where, what)
    for field in fields(cls):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            raise UserError(f"{where}: {what} {field.name} is missing")
    result = cls(**values)
    if hasattr(result, "check"):
        result.check()
    return result


def typed_values(
    cls: type, table: dict, where: str, what: str = "setting", others: Iterable[str] = ()
) -> dict[str, Any]:
    """The values of a table in the types of the dataclass `cls`, without the fields it leaves out.

    others: further keys that a message about an unknown one may suggest. Raises UserError.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} should be a table, not {table!r:.100}")
    types = get_type_hints(cls, include_extras=True)
    known = [field.name for field in fields(cls)]
    for key in table:
        if key not in known:
            raise UserError(f"{where}: {unknown(what, key, [*known, *others])}")
    return {key: typed(value, types[key], where, key) for key, value in table.items()}


def typed(value: Any, kind: Any, where: str, key: str) -> Any:
    """The value of a key in the type `kind`. Raises UserError
    "WHERE: KEY = VALUE should be ..."."""
    if is_dataclass(kind):
        return from_table(kind, value, f"{where} [{key}]")
    try:
        return convert(value, kind)
    except ValueError:
        wrong = f"{where}: {key} = {value!r:.100}"
        raise UserError(f"{wrong} should be {type_name(kind)}") from None


def convert(value: Any, kind: Any) -> Any:
    """The value in the type `kind`, which is no dataclass. Raises ValueError if it has another."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if kind is Any or (origin is Literal and (type(value), value) in [(type(a), a) for a in args]):
        return value
    if origin is Annotated:
        value = convert(value, args[0])
        numbers = value if isinstance(value, list | tuple) else [value]
        limits = [limit for limit in args[1:] if isinstance(limit, Range)]
        if all(n in limit for limit in limits for n in numbers if isinstance(n, int | float)):
            return value
    elif origin in (Union, UnionType):
        for option in sorted(args, key=lambda option: type(value) is not option):
            try:
                return convert(value, option)
            except ValueError:
                continue
    elif origin is float and type(value) in (int, float) and abs(value) < 1e308:  # NaN is not below
        return float(value)
    elif origin is int and type(value) is int and -(2**63) <= value < 2**63:
        return value
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is list or args[1:] in ((), (...,)):
            return origin(convert(item, args[0]) if args else item for item in value)
        return tuple(convert(item, inner) for item, inner in zip(value, args, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {key: convert(item, args[1]) for key, item in value.items()} if args else value
    elif origin in (bool, str, NoneType) and type(value) is origin and "\0" not in str(value):
        return value  # no path or name has a zero byte
    raise ValueError


def type_name(kind: Any, plural: bool = False) -> str:
    """The name of a type in messages: "a list of whole numbers"."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        names = [a if isinstance(a, str) else str(a).lower() for a in args]
        return " or ".join(([", ".join(names[:-1])] if names[1:] else []) + names[-1:])
    if origin is Annotated:
        return " ".join([type_name(args[0], plural), *map(str, args[1:])])
    if origin in (Union, UnionType):
        return " or ".join(type_name(option, plural) for option in args)
    name = NAMES[origin][plural]
    if origin is tuple and args and args[1:] != (...,):
        return f"{name} of {len(args)} {type_name(args[0], True)}"
    if origin in (list, tuple, dict) and args:
        return f"{name} of {type_name(args[-1 if origin is dict else 0], True)}"
    return name
