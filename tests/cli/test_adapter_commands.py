"""Fusions, mixtures, stacks and averages on the command line."""

import json

import pytest
import torch
from conftest import write_sums
from plans import of_layers
from training_runs import same

import run as command_line
from adapters import Average, load_adapter, load_adapters, parameters, use
from model import load_model


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


SHORT = (
    "--max-steps",
    2,
    "--items",
    2,
    *"--set eval.before=false --set eval.max_new_tokens=4 --set train.batch_size=4".split(),
)


@pytest.fixture
def short(tmp_path) -> tuple:
    """The options of a run that takes a second."""
    return (*SHORT, "--data", write_sums(tmp_path / "sums.json"))


def test_fused_stacked_and_averaged_on_the_command_line(tmp_path, capsys, short):
    """Two runs, a fusion on top of both, a stack on one of them; each folder restores what it
    was.
    """
    for name in ("one", "two"):
        assert (
            main(
                "--adapter",
                "parallel",
                "--seed",
                len(name) + ord(name[0]),
                *short,
                "--out",
                tmp_path / name,
            )
            == 0
        )
    loads = [
        word
        for name in ("one", "two")
        for word in ("--load", f"{name}={tmp_path / name / 'adapter'}")
    ]
    sites = 'adapter.sites=["q", "k", "v", "up"]'
    assert (
        main(
            "--adapter",
            "fusion",
            "--set",
            'adapter.of=["one", "two"]',
            "--set",
            sites,
            *loads,
            *short,
            "--out",
            tmp_path / "both",
        )
        == 0
    )
    assert main("--adapter", "lora", *loads[:2], *short, "--out", tmp_path / "stack") == 0
    for name, on in (("both", ["default"]), ("stack", ["one", "default"])):
        setup = json.loads((tmp_path / name / "adapter" / "adapters.json").read_text())
        assert setup["on"] == on
        assert main("evaluate", tmp_path / name, "--items", 2) == 0
    model = load_model("pocket-llama", dtype=torch.float32)
    load_adapters(model, tmp_path / "stack" / "adapter")
    first = load_model("pocket-llama", dtype=torch.float32)
    load_adapter(first, tmp_path / "one" / "adapter", "one")
    assert same(
        parameters(first), [p for path, p in model.named_parameters() if ".adapters.one." in path]
    )  # what was loaded stayed as it was
    pair = [word for name in ("one", "two") for word in ("--adapter", tmp_path / name / "adapter")]
    capsys.readouterr()
    assert (
        main(
            "evaluate",
            "--model",
            "pocket-llama",
            *pair,
            "--average",
            "--items",
            2,
            "--out",
            tmp_path / "mean",
        )
        == 0
    )
    assert "average of" in capsys.readouterr().out
    assert main("evaluate", "--model", "pocket-llama", *pair[:2], "--average", "--items", 2) == 1
    assert "two adapters or more" in capsys.readouterr().err
    folders = [tmp_path / name / "adapter" for name in ("one", "two")]
    assert (
        main(
            "combine",
            f"{folders[0]}=0.5",
            f"{folders[1]}=-1",
            "--model",
            "pocket-llama",
            "--out",
            tmp_path / "sum",
        )
        == 0
    )
    assert "0.5 x" in capsys.readouterr().out
    added = load_model("pocket-llama", dtype=torch.float32)
    load_adapter(added, tmp_path / "sum")
    both = load_model("pocket-llama", dtype=torch.float32)
    for folder, name in zip(folders, ("one", "two"), strict=True):
        load_adapter(both, folder, name)
    use(both, [Average("one", "two", weights=[0.5, -1.0])])
    ids = torch.randint(3, 100, (1, 9))
    torch.testing.assert_close(added(ids), both(ids), rtol=1e-4, atol=1e-4)
    for words, said in (
        ((f"{folders[0]}",), "FOLDER=WEIGHT"),
        ((f"{folders[0]}=x",), "FOLDER=WEIGHT"),
        ((f"{folders[0]}=1", "--how", "sum"), "outputs, cat, svd, weights"),
        ((f"{tmp_path}/none=1",), "no adapter folder"),
        ((f"{folders[0]}=1", "--model", "pocket-opt"), "made for a llama model"),
    ):
        assert main("combine", *words, "--out", tmp_path / "wrong") == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()
    assert main("--adapter", "fusion", *short, "--out", tmp_path / "none") == 1
    assert "names of two adapters" in capsys.readouterr().err
    assert main("--load", "one", *short) == 1
    assert "NAME=FOLDER" in capsys.readouterr().err


def test_a_mixture_is_trained_repeated_and_resumed_from_its_own_file(tmp_path, short):
    assert (
        main(
            *"--adapter unipelt --set adapter.prefix.length=3".split(),
            *short,
            "--out",
            tmp_path / "mix",
        )
        == 0
    )
    assert main("--config", tmp_path / "mix" / "run.toml", "--out", tmp_path / "again") == 0
    first, second = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("mix", "again")
    )
    assert first["after"] == second["after"]
    weights = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("mix", "again")
    ]
    assert weights[0] == weights[1]
    assert "length = 3" in (tmp_path / "mix" / "run.toml").read_text()


def test_the_plan_and_the_drawing_on_the_command_line(capsys, monkeypatch):
    of_layers(2, monkeypatch, "llama-7b", "gptj-6b", "bloom-7b1")
    assert main("plan", "--model", "llama-7b", "--adapter", "paper-parallel", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trainable_parameters"] == 201_326_592 // 16
    assert main("plan", "--model", "gptj-6b", "--adapter", "lora", "--set", "adapter.r=4") == 0
    assert "131,072 parameters" in capsys.readouterr().out
    assert main("show", "--model", "bloom-7b1", "--adapter", "lora+prefix") == 0
    shown = capsys.readouterr().out
    assert "{qkv} ─ {kv}" in shown
    for words, said in (
        (("plan", "--model", "llama7b"), "did you mean 'llama-7b'"),
        (("plan", "--adapter", "paralel"), "did you mean 'parallel'"),
        (
            ("plan", "--model", "llama-7b", "--set", "adapter.size=0"),
            "size = 0 should be a whole number from 1",
        ),
        (("show", "--adapter", "lora", "--set", "x"), "KEY=VALUE"),
    ):
        assert main(*words) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
