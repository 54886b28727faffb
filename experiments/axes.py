"""The axes of a grid: any setting by its path, the values it takes, and their combinations.

    [axes]
    adapter.r = [4, 8, 16, 32]
    train.learning_rate = [1e-4, 3e-4]

`product` makes every combination, `list` takes the first values together, then the second ones,
and `sample` draws some combinations of the product.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from files.errors import UserError, unknown
from files.toml import flat
from train.settings import Settings

Values = dict[str, Any]  # path of a setting -> its value
MOST = 10_000  # runs of one grid


def flat_axes(table: dict) -> dict[str, list]:
    """The lists of a table by path: {"adapter": {"r": [4]}} -> {"adapter.r": [4]}.

    Raises UserError for an axis that is not a list, has no value, or has one twice.
    """
    axes = flat(table)
    for name, value in axes.items():
        if not isinstance(value, list) or not value:
            raise UserError(f"axis {name} = {value!r:.100} should be a list of values")
        texts = [json.dumps(one, sort_keys=True, default=str) for one in value]
        if twice := [one for one, text in zip(value, texts, strict=True) if texts.count(text) > 1]:
            raise UserError(f"axis {name} has {twice[0]!r:.100} twice")
    return axes


def check_names(axes: Sequence[str]) -> None:
    """Raise UserError for an axis that is no setting. Options of adapters are checked later: they
    depend on the method."""
    known = paths_of(Settings)
    for name in axes:
        if name in known or name.startswith("adapter."):
            continue
        ends = [path for path in known if path.endswith(f".{name}")]
        if ends:
            raise UserError(f"unknown setting {name!r} in [axes]; did you mean {ends[0]!r}?")
        raise unknown("setting in [axes]", name, known, "docs/training.md lists them")


def paths_of(cls: type, path: str = "") -> list[str]:
    """The paths of all settings: model, train.epochs ...; without the adapter's own."""
    paths = []
    for field in fields(cls):
        kind = field.default_factory if is_dataclass(field.default_factory) else None
        inner = paths_of(kind, f"{path}{field.name}.") if kind else [f"{path}{field.name}"]
        paths += inner if field.name != "adapter" else []
    return paths


def combinations(axes: dict[str, list], combine: str, sample: int) -> list[Values]:
    """The values of each run: every combination, the n-th values together, or `sample` drawn ones.

    The drawn ones are the same in every call. Raises UserError for a list of axes of different
    lengths, and for too many runs.
    """
    lengths = [len(values) for values in axes.values()]
    if combine == "list":
        if len(set(lengths)) > 1:
            counts = ", ".join(f"{name} {len(values)}" for name, values in axes.items())
            raise UserError(f'combine = "list" needs axes of one length, not {counts}')
        rows = zip(*axes.values(), strict=True) if axes else [()]
        return [dict(zip(axes, row, strict=True)) for row in rows]
    total = math.prod(lengths)
    chosen: Sequence[int] = range(total)
    if sample:
        if sample > total:
            raise UserError(f"sample = {sample} is more than the {total} combinations of the axes")
        chosen = random.Random(f"sample {sample} of {total}").sample(range(total), sample)
    if len(chosen) > MOST:
        raise UserError(f"the axes have {total:,} combinations: sample = 20 draws 20 of them")
    return [nth(axes, number) for number in sorted(chosen)]


def nth(axes: dict[str, list], number: int) -> Values:
    """The combination of this number; the last axis changes fastest."""
    values = {}
    for name, options in reversed(axes.items()):
        number, place = divmod(number, len(options))
        values[name] = options[place]
    return {name: values[name] for name in axes}


def as_table(values: Values) -> dict:
    """{"adapter.r": 4} -> {"adapter": {"r": 4}}."""
    table: dict = {}
    for path, value in values.items():
        *above, key = path.split(".")
        inner = table
        for name in above:
            inner = inner.setdefault(name, {})
        inner[key] = value
    return table


def short(path: str) -> str:
    """The name of an axis in a table: "adapter.r" -> "r"."""
    return path.rpartition(".")[2]


def value_text(value: object) -> str:
    """A value in a table: 0.0003, "q, k, v"."""
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {value_text(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def values_text(values: Values) -> str:
    """ "r 4, learning_rate 0.0003"."""
    return ", ".join(f"{short(path)} {value_text(value)}" for path, value in values.items())


def values_name(values: Values) -> list[str]:
    """The values as parts of a folder's name: ["r=4", "sites=q+k+v"]."""
    parts = []
    for path, value in values.items():
        text = re.sub(r"[^A-Za-z0-9.+_]+", "_", value_text(value).replace(", ", "+"))
        if len(text) > 40 or not text.strip("_"):
            text = hashlib.sha256(value_text(value).encode()).hexdigest()[:8]
        parts.append(f"{short(path)}={text}")
    return parts
