"""distil: a run whose teacher is the adapter of another, killed and resumed, and its summary."""

import json
import signal
from pathlib import Path

import pytest
from conftest import write_sums
from in_command import command
from obeyed import losses

from adapters import load_adapter, use
from data.batches import encode_row
from data.prompts import template
from experiments.distil import distil, settings_to_distil
from files.errors import UserError
from model import load_model, load_tokenizer
from train import loop
from train.measure import mean_loss
from train.teacher import Teacher

SHORT = "train.validation_rows=4 train.max_steps=4 train.save_every=2 eval.items=3".split()
ENGINES = ["peft", "vllm", "llama.cpp", "ollama", "transformers"]
SETS = [word for text in SHORT for word in ("--set", text)]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A short run of a parallel adapter that changes the answers."""
    path = tmp_path_factory.mktemp("distil")
    words = "--max-steps 3 --items 3 --set eval.max_new_tokens=2 --set train.batch_size=4"
    words += " --set eval.before=false --set train.learning_rate=0.1 --set train.warmup_steps=0"
    data = write_sums(path / "sums.json")
    command("train", "--data", data, *words.split(), "--out", path / "first", status=None)
    return path / "first"


@pytest.fixture(scope="module")
def whole(first) -> Path:
    """Its adapter, distilled without a disturbance."""
    out = first.parent / "whole"
    assert "KL(teacher" in command("distil", first, "--r", 2, *SETS, "--out", out, status=None)
    return out


def test_an_interrupted_one_ends_with_the_same_bits(first, whole, tmp_path, monkeypatch):
    steps, after = [], loop.after_step

    def stop_once(*arguments):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return after(*arguments)

    monkeypatch.setattr(loop, "after_step", stop_once)
    out = tmp_path / "out"
    told = command("distil", first, "--r", 2, *SETS, "--out", out, status=128 + signal.SIGTERM)
    assert f"distil --resume {out}" in told
    command("distil", "--resume", out, status=None)
    assert len(steps) == 4
    assert losses(out) == losses(whole)
    for name in ("adapter/adapter_model.safetensors", "predictions.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_the_divergence_and_what_is_gained(first, whole):
    """Before training the student is the base: KL(teacher || base) of the held-out rows."""
    model, words = load_model("pocket-llama"), load_tokenizer("pocket-llama")
    load_adapter(model, first / "adapter", "teacher")
    form = template("alpaca", words)
    rows = json.loads((first.parent / "sums.json").read_text())
    summary = json.loads((whole / "distilled.json").read_text())
    result = json.loads((whole / "result.json").read_text())
    assert summary["divergence"] == result["divergence"]
    assert result["held_out_loss"] == {}
    every = [encode_row(words, {"input": "", **row}, form, 256)[0] for row in rows]
    teacher = Teacher(model, "teacher")
    use(model, [])
    figures = [mean_loss(model, [row], 1, 0, teacher=teacher) for row in every]
    assert min(figures) < summary["divergence"]["before"] < max(figures)
    teacher, student = summary["teacher"], summary["student"]
    assert (teacher["engines"], student["engines"]) == (["transformers"], ENGINES)
    assert "cannot be merged" in teacher["unmergeable"]
    assert student["unmergeable"] == ""
    assert (whole / "predictions-teacher.jsonl").read_text() == (
        first / "predictions.jsonl"
    ).read_text()
    assert [pair["tests"] for pair in summary["tests"]] == ["all problems"]  # of one set


def test_a_complete_one_is_shown_again(whole):
    told = command("distil", "--resume", whole, status=None)
    assert "can be merged  no -> yes" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("/nowhere",), "/nowhere holds no run.toml"),
        ((), "give the folder of the run"),
        (("FIRST", "--to", "prefix", "--r", 2), "unknown option of prefix adapters 'r'"),
        (("FIRST", "--set", "load.a=x"), "leave out load and continue_from, or teacher"),
        (("--resume", "FIRST"), "has no teacher"),
    ],
)
def test_what_is_refused(first, tmp_path, words, says):
    words = [str(first) if word == "FIRST" else word for word in words]
    out = () if "--resume" in words else ("--out", tmp_path / "x")
    assert says in command("distil", *words, *out, status=1)


def test_nothing_is_copied_through_a_link(first, whole, tmp_path):
    """A link to a file that is not there yet does not exist, and a copy would make that file."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.toml").write_text((whole / "run.toml").read_text())
    (out / "predictions-teacher.jsonl").symlink_to(tmp_path / "outside")
    said = command("distil", "--resume", out, status=1)
    assert "predictions-teacher.jsonl is a link" in said
    assert not (tmp_path / "outside").exists()


def test_from_python(first, tmp_path):
    settings = settings_to_distil(first, "lora", r=2, sites=["q"], sets=["train.max_steps=1"])
    assert settings.train.validation_rows == 64
    assert settings.adapter.parts[""].sites == ("q",)
    with pytest.raises(UserError, match="leaves no row"):  # 40 rows, 64 held out
        distil(settings, tmp_path / "out")


def test_a_refused_one_leaves_nothing(first, tmp_path):
    command("distil", first, "--sites", "x", "--out", tmp_path / "out", status=1)
    assert not (tmp_path / "out").exists()
