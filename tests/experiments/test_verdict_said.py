"""A run that went wrong says so: at its end, in result.json, in the report, by its exit status."""

import json
import shutil

import processes
from conftest import write_sums

import run as command_line
from experiments import jobs
from experiments.base import toy_lines
from model.registry import POCKET
from train import pipeline

FAST = ("--set", "eval.max_new_tokens=2", "--items", "1")


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


# ---------------------------------------------------------------- whole runs
def test_a_run_that_blew_up_says_so_everywhere_and_ends_with_status_1(tmp_path, capsys):
    data, out = write_sums(tmp_path / "sums.json"), tmp_path / "out"
    words = (
        "--adapter",
        "lora",
        "--data",
        data,
        *(
            "--set train.learning_rate=3.0 --set train.warmup_steps=0 --max-steps "
            "12 --set eval.before=false"
        ).split(),
        *FAST,
    )
    assert main(*words, "--out", out) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if line.startswith("PROBLEM: ")]
    assert "the loss ended above where it began" in line
    assert "run.py:" not in captured.err
    facts = json.loads((out / "result.json").read_text())
    assert facts["status"] == 1
    assert facts["problems"] == [line.removeprefix("PROBLEM: ")]
    assert "Problem: the loss ended above where it began" in (out / "report.html").read_text()
    assert main("inspect", out) == 0
    assert line in capsys.readouterr().out
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_a_grid_takes_a_run_that_went_wrong_as_complete_and_ends_with_status_1(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(jobs, "subprocess", processes)
    words = (
        *"table --pocket --models pocket-llama --adapters lora --data".split(),
        write_sums(tmp_path / "sums.json"),
        *("--set train.max_steps=3 --set train.learning_rate=9.0 --set eval.items=1 --out").split(),
        tmp_path / "grid",
    )
    for complete in (0, 1):
        assert main(*words) == 1
        captured = capsys.readouterr()
        assert f"{complete} of them complete" in captured.out
        assert "failed" not in captured.out
        assert (
            "1 of 1 runs have nothing to show: pocket-llama lora, the loss "
            "ended above where it began"
        ) in captured.err
        assert (tmp_path / "grid" / "table.md").is_file()


def test_a_run_all_of_whose_steps_were_skipped_has_nothing_to_show(tmp_path, monkeypatch, capsys):
    true_loss = pipeline.summed_loss
    monkeypatch.setattr(
        pipeline, "summed_loss", lambda *arguments: true_loss(*arguments) * float("nan")
    )
    words = (
        "--adapter",
        "lora",
        "--data",
        write_sums(tmp_path / "sums.json"),
        "--set",
        "eval.before=false",
        *FAST,
    )
    assert main(*words, "--max-steps", "2", "--out", tmp_path / "out") == 1
    assert "all 2 steps were skipped" in capsys.readouterr().out


def test_a_short_run_that_did_its_work_ends_with_status_0(tmp_path, capsys):
    data = write_sums(tmp_path / "sums.json")
    for steps in (1, 3):
        out = tmp_path / str(steps)
        assert (
            main("--adapter", "lora", "--data", data, "--max-steps", steps, *FAST, "--out", out)
            == 0
        )
        facts = json.loads((out / "result.json").read_text())
        assert (facts["status"], facts["problems"]) == (0, [])
    assert "PROBLEM" not in capsys.readouterr().out


# ---------------------------------------------------------------- the model comes first; toys
def test_a_wrong_model_is_said_before_any_data_is_fetched(tmp_path, monkeypatch, capsys):
    def fetched(*_, **__):
        raise AssertionError("data was fetched")

    monkeypatch.setattr("experiments.rows.load_data", fetched)
    monkeypatch.setattr("experiments.prepare.load_base", fetched)
    folders = {name: tmp_path / name for name in ("no-words", "no-weights", "small")}
    for folder in folders.values():
        shutil.copytree(POCKET / "llama", folder)
    (folders["no-words"] / "tokenizer.json").unlink()
    (folders["no-weights"] / "model.safetensors").unlink()
    config = json.loads((folders["small"] / "config.json").read_text())
    (folders["small"] / "config.json").write_text(json.dumps(config | {"vocab_size": 61}))
    for name, said in (
        ("llama-7b", "huggyllama/llama-7b is neither a local folder nor in the cache"),
        ("nobody/nothing", "nobody/nothing"),
        (folders["no-words"], "holds no tokenizer"),
        (folders["no-weights"], "neither model.safetensors nor"),
        (folders["small"], "the embedding only 61"),
    ):
        for command in ((), ("evaluate",)):
            assert (
                main(*command, "--model", name, "--data", "gsm8k", "--out", tmp_path / "out") == 1
            )
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_pocket_models_are_called_toys_once(tmp_path, capsys):
    data = write_sums(tmp_path / "sums.json")
    assert (
        main(
            "--adapter",
            "lora",
            "--data",
            data,
            "--max-steps",
            "1",
            *FAST,
            "--set",
            "eval.before=false",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    assert capsys.readouterr().out.count("pocket-llama is a toy") == 1
    assert main("evaluate", tmp_path / "out", "--max-new-tokens", "2") == 0
    assert capsys.readouterr().out.count("pocket-llama is a toy") == 1
    assert (
        main("generate", tmp_path / "out", "--instruction", "Hello", "--max-new-tokens", "2") == 0
    )
    captured = capsys.readouterr()
    assert captured.err.count("pocket-llama is a toy") == 1
    assert "toy" not in captured.out
    assert toy_lines("pocket-opt")
    assert (
        toy_lines("llama-7b") == toy_lines("/models/pocket-llama") == toy_lines("pocket-lama") == []
    )
