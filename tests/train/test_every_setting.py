"""Every field of Settings, Train and Eval is obeyed: a row sets it and compares what it gives.

A field without a row fails. Most rows train or measure for a fraction of a second and compare with
the same computation written out by hand: plain AdamW, or `generate` on one prompt after another.
The rows are in settings_of_training.py and settings_of_runs.py.
"""

from dataclasses import fields, is_dataclass

import pytest
import settings_of_runs  # noqa: F401 - adds rows
from obeyed import Here
from settings_of_training import ROWS

from train.settings import Eval, Settings, Train


def settings_fields(cls=Settings, prefix: str = "") -> list[str]:
    """Settings -> "seed", "train.epochs" ..."""
    names = []
    for one in fields(cls):
        inner = {"train": Train, "eval": Eval}.get(one.name) if cls is Settings else None
        names += settings_fields(inner, f"{one.name}.") if inner else [prefix + one.name]
    return names


def test_every_field_has_a_row():
    nested = {name for name, value in vars(Settings()).items() if is_dataclass(value)}
    assert nested - {"adapter"} == {"train", "eval"}, "a new table of settings: enumerate it too"
    assert set(ROWS) == set(settings_fields())


@pytest.mark.parametrize("name", ROWS.cases())
def test_setting(name, request, tmp_path, monkeypatch):
    ROWS.prove(name, Here(tmp_path, monkeypatch, request, name))
