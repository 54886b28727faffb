"""Every option of every command is obeyed: a row gives it and compares with what it must give.

The options are read from the parsers, so that a new one without a row fails. What becomes a setting
is compared with the settings file of the run: tests/train/test_every_setting.py proves the
settings. The rows are in options_of_runs.py, options_of_serving.py and
options_of_tools.py.
"""

from pathlib import Path

import options_of_runs  # noqa: F401 - adds rows
import options_of_serving  # noqa: F401
import options_of_tools  # noqa: F401
import pytest
from conftest import write_sums
from in_command import command
from options_given import ROWS, Given, every_option


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two short runs, run and lora-run, whose adapters change the answers."""
    folder = tmp_path_factory.mktemp("made")
    sums = write_sums(folder / "sums.json")
    words = "--max-steps 3 --items 1 --set eval.max_new_tokens=2 --set train.batch_size=4"
    words += " --set eval.before=false --set train.warmup_steps=0 --set train.learning_rate=0.2"
    for name, adapter in (("run", "parallel"), ("lora-run", "lora --set adapter.alpha=5")):
        words_of_run = [*words.split(), "--adapter", *adapter.split(), "--out", folder / name]
        command("train", "--data", sums, *words_of_run, status=None)
    return folder


def test_every_option_has_a_row():
    assert set(ROWS) == set(every_option())


@pytest.mark.parametrize("name", ROWS.cases())
def test_option(name, request, tmp_path, monkeypatch):
    ROWS.prove(name, Given(tmp_path, monkeypatch, request, name))
