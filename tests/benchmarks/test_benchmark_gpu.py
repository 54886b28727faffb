"""The case `gpu`: every part runs on the CPU, with tiny shapes."""

import json

import pytest
import torch
from in_command import command

from benchmarks import gpu, gpu_parts

# ---------------------------------------------------------------- one card

KINDS = (
    "rates, CUDA =, llama-7b lora bf16, decode batch 8, opt-6.7b parallel nf4, float16, cuda and"
)


KINDS += ", offload, twice, graphs"


def rows_of(folder) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def card(folder, only: str, status: int = 0, *words) -> dict[str, dict]:
    words = ("benchmark", "--case", "gpu", "--smoke", "--only", only, *words)
    command(*words, "--out", folder, status=status)
    return {row["part"]: row for row in rows_of(folder)}


def test_every_kind_of_part_runs_on_the_cpu(tmp_path):
    rows = card(tmp_path, KINDS)
    assert not [row for row in rows.values() if row.get("wrong") or "missing" in row]
    step, peers = rows["llama-7b lora bf16"], rows["llama-7b lora bf16 (peer)"]
    assert step["share"] == pytest.approx(peers["share"] * peers["ratio"])
    assert step["loss"] == pytest.approx(peers["loss"], rel=2e-3)
    assert step["planned"] > 10**5
    assert rows["decode batch 8 bf16"]["tokens"]  # below 0 where the machine is busy
    assert "loss 0e+00" in rows["CUDA = CPU"]["result"]  # the CPU beside itself
    assert rows["deterministic run twice"]["result"] == "equal to the bit"
    if not torch.cuda.is_available():
        assert rows["offload"]["note"] == "needs a GPU, ran on the CPU"
        told = command("benchmark", "--case", "gpu", "--out", tmp_path, status=1)
        assert "the case gpu needs a GPU; --smoke runs it on the CPU" in told


@pytest.mark.slow
def test_the_whole_case_runs_on_the_cpu(tmp_path):
    rows = card(tmp_path, "")
    assert list(rows) == [part.name for part in gpu_parts.parts()]
    assert not [row for row in rows.values() if row.get("wrong") or "missing" in row]
    assert (tmp_path / "benchmark.png").is_file()


def test_the_parts_are_all_that_is_asked_of_a_card():
    """Every family in every form, with both adapters, beside the peer; the dearest first."""
    names = [part.name for part in gpu_parts.parts()]
    assert len(set(names)) == len(names)
    for family in gpu_parts.FAMILIES:
        for adapter in ("lora", "parallel"):
            assert {f"{family} {adapter} bf16", f"{family} {adapter} bf16 (peer)"} <= set(names)
            block = " block" * (family == "llama-7b")
            assert {f"{family} {adapter} {w}{block}" for w in ("int8", "nf4")} <= set(names)
    assert names[:4] == ["rates", "CUDA tests", "CUDA = CPU", "graphs = plain"]
    for part in gpu_parts.parts():
        assert not part.against or names.index(part.against) < names.index(part.name)


def test_a_part_that_fails_or_has_no_time_left_stops_no_other(tmp_path, monkeypatch):
    def broken(o):
        raise RuntimeError("CUDA error: no such thing")

    monkeypatch.setattr("benchmarks.gpu_checks.scaled", broken)
    rows = card(tmp_path, "float16, offload", 1)
    assert rows["float16 loss scaling"]["missing"] == (
        "failed: RuntimeError: CUDA error: no such thing"
    )
    assert "losses within" in rows["offload"]["result"]
    clock = iter((0.0, 0.0, 1000.0))
    monkeypatch.setattr(gpu, "monotonic", lambda: next(clock))
    rows = card(tmp_path, "offload, deterministic", 0, "--minutes", "5")
    assert [("missing" in row) for row in rows.values()] == [False, True]
    assert rows["deterministic run twice"]["missing"] == "not run: no time left"


def test_a_wrong_result_of_a_part_is_said(tmp_path, monkeypatch):
    from benchmarks import gpu_checks

    plain = gpu_checks.once

    def other(name, layers, dtype, tokens, device):
        loss, gradients, new = plain(name, layers, dtype, tokens, "cpu")
        return (loss, gradients * (1 if device == "cpu" else 1.01), new)

    monkeypatch.setattr(gpu_checks, "once", other)
    o = {"models": [("pocket-llama", 0)], "dtypes": ["float32"], "tokens": 12, "device": "gpu"}
    assert gpu_checks.parity(o)()["wrong"] == [
        "pocket-llama float32: loss 0.0e+00, gradients 1.0e-02"
    ]
