"""The measuring library, and smoke runs of the benchmarks: no figure of time is a test."""

import json
import os
import sys
from itertools import pairwise

import pytest
from in_command import command

from benchmarks import compare, growth, peer, table
from benchmarks.compare import Context, Different, Row
from benchmarks.process import Measured, Worker, in_turn, run_command
from benchmarks.random_weights import random_checkpoint
from benchmarks.work import options
from files.errors import UserError

COUNTING, FAILING = "tests.work_to_measure:counting", "tests.work_to_measure:failing"


# ---------------------------------------------------------------- the library


def test_sides_are_measured_in_turn_in_processes_of_their_own():
    sides = {"small": (COUNTING, {"bytes": 10**6, "sleep": 0.02})}
    sides["large"] = (COUNTING, {"bytes": 10**8, "sleep": 0.001})
    found = in_turn(sides, 2, warm=1)
    small, large = found["small"], found["large"]
    assert [run["runs"] for run in small.runs] == [2, 3]  # the first warmed up
    assert len({os.getpid(), small.facts["process"], large.facts["process"]}) == 3
    spans = [run["span"] for pair in zip(small.runs, large.runs, strict=True) for run in pair]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert small.seconds >= 0.02
    assert small.peak < 10**8 < 3 * 10**8 < large.peak < 5 * 10**8  # large holds three


def test_the_least_counts_for_seconds_and_the_most_for_memory():
    side = Measured([{"seconds": s, "peak": p} for s, p in ((3, 5), (1, 9), (2, 7))])
    assert (side.seconds, side.median, side.peak) == (1, 2, 9)


def test_work_that_fails_or_takes_too_long_is_one_line():
    worker = Worker(FAILING, {})
    with pytest.raises(UserError, match="the measurement ended with: no such work"):
        worker.ask()
    worker = Worker(FAILING, {"sleep": 60}, timeout=1.5)
    with pytest.raises(UserError, match="stopped after 2 s"):
        worker.ask()
    with pytest.raises(UserError, match="ended with: gone"):
        run_command((sys.executable, "-c", "import sys; sys.exit('gone')"))


# ---------------------------------------------------------------- both sides


def test_random_weights_are_the_same_in_files_and_in_memory(tmp_path):
    """And of a model of fewer layers, whose remaining weights keep their values."""
    from benchmarks import ours

    random_checkpoint("pocket-gptj", tmp_path / "model")
    files = ours.base(options(model=str(tmp_path / "model")))
    for layers in (0, 2):
        made = ours.base(options(model="pocket-gptj", random=True, layers=layers))
        named = dict(made.named_parameters())
        assert len(made.blocks) == (layers or len(files.blocks))
        assert all(p.equal(files.get_parameter(name)) for name, p in named.items())
        scale = named["transformer.ln_f.weight"].float()
        assert 0.9 < scale.mean() < 1.1


@pytest.mark.parametrize("model", ["pocket-llama", "pocket-bloom", "pocket-opt", "pocket-gptj"])
def test_both_sides_do_the_same_work(model):
    """Losses of two steps and tokens agree in float32, for every family and adapter."""
    context = Context(model, smoke=True)
    some = {"random": True, "dtype": "float32"}
    for more in ({"adapters": 2}, {"adapter": "parallel", "checkpointing": True}):
        row = compare.trained_row(Row("step", "step", some | more), context)
        assert row["equal"] == "loss"
        assert row["ours"]["norm"] == pytest.approx(row["peer"]["norm"], rel=1e-4)
    for more in ({}, {"beams": 2}):
        row = compare.decode_row(Row("decode", "decode", some | more | {"adapter": ""}), context)
        assert row["equal"] in ("tokens (2/2 in float32)", "tokens (1/1 in float32)")


def test_a_difference_is_noticed():
    def sides(**facts):
        return {
            name: Measured([{key: v}])
            for key, (a, b) in facts.items()
            for name, v in (("ours", a), ("peer", b))
        }

    assert compare.same_loss(sides(loss=(1.0, 1.000001)), "float32") == "loss"
    with pytest.raises(Different, match=r"losses differ in float32: 1\.000000 and 1\.000020"):
        compare.same_loss(sides(loss=(1.0, 1.00002)), "float32")
    with pytest.raises(Different, match="losses differ"):
        compare.same_loss(sides(loss=(float("nan"), 1.0)), "bfloat16")
    rows = ([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert compare.same_tokens(sides(rows=rows), "bfloat16") == "tokens (1/2 in bfloat16)"
    with pytest.raises(Different, match="1 of 2 rows have other tokens in float32"):
        compare.same_tokens(sides(rows=rows), "float32")


# ---------------------------------------------------------------- the table


def test_the_table_is_made(tmp_path, capsys):
    """Every row, with tiny shapes, and the files."""
    told = command("benchmark", "--smoke", "--out", tmp_path)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {row["work"]: row for row in content["rows"]}
    assert list(rows) == [row.name for row in table.ROWS]
    assert not [row for row in rows.values() if "failed" in row]
    assert rows["LoRA step bf16 4 x 256"]["equal"] == "loss"
    assert rows["LoRA step bf16 4 x 256"]["ours"]["share"] > 0
    assert rows["evaluate 10 problems a set"]["equal"].startswith("text (")
    assert rows["run.py --help"]["peer"] is None
    assert {"processor", "threads", "torch", "bf16 peak"} <= content["facts"].keys()
    page = (tmp_path / "benchmark.md").read_text()
    assert all(f"| {name}" in page for name in rows)
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    assert all(name in told for name in rows)


def test_only_some_rows_without_the_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    told = command("benchmark", "--smoke", "--only", "batch 8, fp32", "--out", tmp_path)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["work"] for row in content["rows"]] == [
        "LoRA step fp32 4 x 256",
        "greedy bf16 batch 8",
    ]
    assert all(row["peer"] is None and row["ours"]["seconds"] for row in content["rows"])
    assert "transformers and peft not installed" in told
    assert "no plot: pip install matplotlib" in told


def test_a_row_that_differs_fails_the_command(tmp_path, monkeypatch):
    from benchmarks import ours

    def wrong(o):
        run = step(o)
        return lambda: {**(facts := run()), "loss": facts["loss"] * 1.0001}

    step = ours.step
    monkeypatch.setattr(ours, "step", wrong)
    told = command("benchmark", "--smoke", "--only", "fp32", "--out", tmp_path, status=1)
    assert "1 rows have no figures" in told
    assert "NO: the losses differ in float32" in told
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert "ratio" not in content["rows"][0]


def rows_of(folder) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


# ---------------------------------------------------------------- growth and processes


def test_an_exponent_is_that_of_the_power():
    assert growth.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert growth.exponent([1, 2], [0, 3]) is None


def test_growth_is_measured(tmp_path):
    words = "--case growth --smoke --only length,adapters --dtype float32"
    command("benchmark", *words.split(), "--out", tmp_path)
    rows = rows_of(tmp_path)
    assert [row.get("fit") or f"{row['series']} {row['size']}" for row in rows] == [
        "length 16", "length 32", "exponent of length", "length, last two",
        "adapters 1", "adapters 2", "exponent of adapters", "adapters, last two",
    ]  # fmt: skip
    assert all(row["ours"]["loss"] == pytest.approx(row["peer"]["loss"], rel=1e-5)
               for row in rows if "size" in row)  # fmt: skip
    ours = [row["ours"]["seconds"] for row in rows[:3]]
    assert ours[2] == pytest.approx(growth.exponent([16, 32], ours[:2]))
    assert growth.values_of("layers", "smollm2-135m", smoke=False) == (2, 4, 8, 16, 30)


@pytest.mark.slow
def test_processes_are_compared_with_one(tmp_path):
    command(*"benchmark --case processes --smoke --out".split(), tmp_path)
    rows = {row["work"]: row for row in rows_of(tmp_path)}
    assert set(rows) == {"training", "evaluation"}
    assert all(row["equal"] and row["one"] > 0 < row["several"] for row in rows.values())


def test_more_processes_than_cores_are_refused(tmp_path):
    words = "benchmark --case processes --smoke --processes 5000 --out"
    assert "--processes 5000 need as many cores" in command(*words.split(), tmp_path, status=1)
