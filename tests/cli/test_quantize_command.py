"""`quantize`, and a run on an int8 or nf4 base."""

import json

import pytest
import torch
from conftest import write_checkpoint

import run as command_line
from model import UserError, load_model
from train.settings import settings


def test_the_command(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Emma has 3 apples. She buys 4 more. How many apples does she have now? " * 4)
    for more in ([], ["--text", str(text), "--tokens", "40"]):
        assert (
            command_line.main(
                ["quantize", "--to", "nf4", "--out", str(tmp_path / f"out{len(more)}"), *more]
            )
            == 0
        )
        said = capsys.readouterr().out
        assert "1.8 MB before, 640.7 kB now" in said
        assert "KL divergence" in said
    assert "39 tokens of" in said
    assert command_line.main(["quantize", "--to", "nf4", "--out", str(tmp_path / "out0")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (
        command_line.main(
            [
                "quantize",
                "--model",
                str(tmp_path / "out0"),
                "--to",
                "int8",
                "--out",
                str(tmp_path / "again"),
            ]
        )
        == 1
    )
    assert "stored as nf4 already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_run_on_a_quantised_base(tmp_path, capsys):
    """Trained, evaluated by its run.toml, merged: the word is said once."""
    out = tmp_path / "run"
    assert (
        command_line.main(
            [
                *(
                    "train --quantize nf4 --max-steps 2 --items 1 --tests addsub --adapter "
                    "lora --set eval.before=false --out"
                ).split(),
                str(out),
            ]
        )
        == 0
    )
    assert "906,880 parameters, frozen, float32 and nf4" in capsys.readouterr().out
    assert 'quantize = "nf4"' in (out / "run.toml").read_text()
    assert json.loads((out / "result.json").read_text())["parameters"] == 906_880
    assert command_line.main(["evaluate", str(out), "--out", str(tmp_path / "measured")]) == 0
    assert (tmp_path / "measured" / "predictions.jsonl").read_text() == (
        out / "predictions.jsonl"
    ).read_text()
    assert json.loads((tmp_path / "measured" / "result.json").read_text())["quantize"] == "nf4"
    assert "model pocket-llama in nf4, adapter" in capsys.readouterr().out
    assert (
        command_line.main(
            ["evaluate", str(out), "--quantize", "none", "--out", str(tmp_path / "plain")]
        )
        == 0
    )
    assert (
        "was trained on a base stored as nf4, and this one is stored as plain weights"
        in capsys.readouterr().out
    )
    assert command_line.main(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0
    assert load_model(str(tmp_path / "merged")).quantize == ""
    assert load_model(str(tmp_path / "merged")).dtype == torch.float16
    shape = {"vocab_size": 512, "max_position_embeddings": 256}
    tiny = write_checkpoint(tmp_path / "tiny", "opt", **shape)
    assert (
        command_line.main(
            ["benchmark", "--case", "quantize", "--model", str(tiny), "--repeats", "1"]
        )
        == 0
    )
    assert "llm-int8" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'int8'"):
        settings(options={"quantize": "int"})
