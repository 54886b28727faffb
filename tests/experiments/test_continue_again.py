"""What a continued adapter's file remembers, and what it refuses."""

import json
import shutil
from pathlib import Path

import torch
from continued_runs import (
    FAST,
    STILL,
    WEIGHTS,
    first,  # noqa: F401
    go_on,
    main,
    other_rows,
    run_section,
)

from adapters import attach, load_adapter, named_parameters, save_adapter, save_adapters
from adapters.formats.base_model import base_name
from data.sources import load_data
from model import load_model


def test_run_toml_repeats_a_continued_run(first, tmp_path):
    out = go_on(first, tmp_path / "out", "--max-steps", "2")
    assert main("--config", out / "run.toml", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    assert run_section(tmp_path / "again") == run_section(out)


# ---------------------------------------------------------------- what it was trained on
def test_the_file_remembers_every_run_and_evaluation_checks_all_of_them(first, tmp_path, capsys):
    data = other_rows(tmp_path / "other.jsonl")
    second = go_on(first, tmp_path / "second", "--max-steps", "2", "--data", data)
    third = go_on(second, tmp_path / "third", "--max-steps", "2", "--seed", "0")
    section = run_section(third)
    assert [Path(one["data"]).name for one in section["history"]] == ["sums.json", "other.jsonl"]
    assert [one["steps"] for one in section["history"]] == [12, 2]
    assert section["history"][0]["template"] == "plain"
    assert all("template_text" not in one and "history" not in one for one in section["history"])
    assert json.loads((third / "result.json").read_text())["history"] == section["history"]
    assert "Trained further from" in (third / "report.html").read_text()
    capsys.readouterr()
    assert main("inspect", third) == 0
    assert (
        f"trained before on {first.parent / 'sums.json'}, 12 steps, seed 0, template plain"
        in capsys.readouterr().out
    )
    seen = tmp_path / "seen.json"
    seen.write_text(json.dumps(json.loads((first.parent / "sums.json").read_text())[:10]))
    assert (
        main(
            "evaluate",
            "--adapter",
            third / "adapter",
            "--model",
            "pocket-llama",
            "--data",
            first.parent / "sums.json",
            "--tests",
            seen,
            "--max-new-tokens",
            "2",
            "--out",
            tmp_path / "e",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "the adapter was trained on 3 sets of data, one after the other" in said
    assert "seen: the adapter was trained on" in said
    assert "other.jsonl' is named by the adapter's file only, which is not followed" in said
    marked = [
        json.loads(line).get("leak")
        for line in (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()
    ]
    assert marked.count("twin") >= 8


def test_a_test_set_that_an_earlier_run_trained_on_is_refused(first, tmp_path, capsys):
    """Another seed holds out other rows of the same file: the adapter has seen most of them."""
    assert (
        main(
            "--continue",
            first,
            *"--seed 1 --max-steps 1".split(),
            *FAST,
            "--items",
            "0",
            "--out",
            tmp_path / "out",
        )
        == 1
    )
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run.py:")]
    assert len(error) == 1
    assert "was trained on the test set sums" in error[0]
    out = go_on(first, tmp_path / "out", "--seed", "1", *STILL, "--train-on-test")
    assert json.loads((out / "result.json").read_text())["trained_on_test"] == ["sums"]


def test_held_out_rows_that_were_trained_on_before_are_counted(tmp_path, capsys):
    """Rows without answers: another seed holds out others, and the run says how many it had."""
    rows = [
        {"instruction": f"Describe mountain {n}.", "output": f"It is {n} m high."}
        for n in range(40)
    ]
    (tmp_path / "hills.json").write_text(json.dumps(rows))
    data = ("--data", tmp_path / "hills.json", "--template", "plain")
    assert (
        main("--adapter", "lora", *data, "--max-steps", "1", *FAST, "--out", tmp_path / "one") == 0
    )
    go_on(tmp_path / "one", tmp_path / "same", *STILL)
    assert "held-out rows: " not in capsys.readouterr().out
    held_out = [
        {row["instruction"] for row in load_data(str(data[1]), seed=seed).held_out}
        for seed in (0, 1)
    ]
    again = len(held_out[1] - held_out[0])
    assert 0 < again <= 4
    go_on(tmp_path / "one", tmp_path / "other", *STILL, "--seed", "1")
    said = capsys.readouterr().out
    line = f"held-out rows: the adapter was trained on {again} of these 4 problems word for word"
    assert line in said
    other_seed = ("--set", "seed=1", "--out", tmp_path / "measured")
    assert main("evaluate", tmp_path / "one", *other_seed) == 0
    assert line in capsys.readouterr().out


def test_before_is_what_the_adapter_did_before(first, tmp_path, capsys):
    """Not what the base does."""
    out = tmp_path / "out"
    assert (
        main(
            "--continue",
            first,
            *STILL,
            *"--set eval.max_new_tokens=20 --items 3 --set eval.before=true --out".split(),
            out,
        )
        == 0
    )
    before, after = (
        [
            json.loads(line)["output"]
            for line in (out / f"predictions{name}.jsonl").read_text().splitlines()
        ]
        for name in ("-before", "")
    )
    assert before == after
    assert not (out / "predictions-base.jsonl").exists()
    assert "before   " in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("test set")
    )


# ---------------------------------------------------------------- resumed; planned
def test_an_interrupted_continued_run_ends_with_the_same_bits(first, tmp_path, capsys):
    out = go_on(
        first,
        tmp_path / "out",
        *"--max-steps 6 --set train.save_every=3 --set train.keep=9".split(),
    )
    whole = (out / WEIGHTS).read_bytes()

    def back_to_step_three() -> None:
        shutil.rmtree(out / "adapter", ignore_errors=True)
        for name in ("result.json", "report.html", "predictions.jsonl", "checkpoint-000006.pt"):
            (out / name).unlink(missing_ok=True)

    back_to_step_three()
    assert main("--resume", out) == 0
    assert (out / WEIGHTS).read_bytes() == whole
    back_to_step_three()
    toml = (out / "run.toml").read_text()
    shutil.copytree(
        first / "adapter", tmp_path / "moved"
    )  # the same adapter in another place will do
    (out / "run.toml").write_text(toml.replace(str(first / "adapter"), str(tmp_path / "moved")))
    assert main("--resume", out) == 0
    back_to_step_three()
    model = load_model("pocket-llama", dtype=torch.float32)
    run = load_adapter(model, first / "adapter")
    with torch.no_grad():
        next(iter(named_parameters(model).values())).add_(0.1)
    save_adapter(model, tmp_path / "moved", run=run, overwrite=True)
    capsys.readouterr()
    assert main("--resume", out) == 1
    assert "was made with another adapter to continue" in capsys.readouterr().err


def test_a_plan_counts_the_adapter_of_the_file(first, tmp_path, capsys):
    def facts(*words) -> dict:
        assert main("plan", *words, "--device", "cpu", "--json") == 0
        return json.loads(capsys.readouterr().out)

    capsys.readouterr()
    new = facts("--model", "pocket-llama", "--adapter", "lora")
    assert facts("--continue", first)["trainable_parameters"] == new["trainable_parameters"]
    assert (
        facts("--continue", first / "adapter", "--set", "train.batch_size=8")["adapter"] == "lora"
    )
    out = go_on(first, tmp_path / "out", *STILL)
    capsys.readouterr()
    assert (
        facts("--config", out / "run.toml")["trainable_parameters"] == new["trainable_parameters"]
    )


# ---------------------------------------------------------------- wrongly
def test_what_does_not_go_with_it_is_one_line(first, tmp_path, capsys):
    data = other_rows(tmp_path / "other.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep" / "math").mkdir(parents=True)
    shutil.copytree(first / "adapter", tmp_path / "deep" / "math", dirs_exist_ok=True)
    shutil.copytree(first, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "adapter")
    (tmp_path / "adapter.toml").write_text('[adapter]\npreset = "lora"\n')
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "p-tuning")
    save_adapter(model, tmp_path / "p", format="peft")
    attach(model, "lora", "one")
    save_adapters(model, tmp_path / "rows")
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "lora", "one")
    attach(model, "lora", "two")
    save_adapters(model, tmp_path / "several")
    shutil.copytree(tmp_path / "p", tmp_path / "prefix")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    prefix = config | {"peft_type": "PREFIX_TUNING", "prefix_projection": True}
    (tmp_path / "prefix" / "adapter_config.json").write_text(json.dumps(prefix))
    shutil.copytree(tmp_path / "p", tmp_path / "lost")
    (tmp_path / "lost" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/home/them/llama"})
    )
    shutil.copytree(tmp_path / "p", tmp_path / "nameless")
    (tmp_path / "nameless" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    assert base_name(model)
    for words, said in (
        ((first, "--adapter", "lora"), "--adapter says what the adapter is"),
        ((first / "adapter", "--set", "adapter.r=4"), "--set adapter.r=4 says what the adapter is"),
        (
            (first / "adapter", "--config", tmp_path / "adapter.toml"),
            "adapter.toml says what the adapter is",
        ),
        ((first, "--config", tmp_path / "adapter.toml"), "leave out --config"),
        ((first, "--recipe", "paper"), "leave out --recipe"),
        ((first, "--resume", first), "--resume continues a run with its own settings"),
        ((tmp_path / "unfinished",), "--resume"),
        ((tmp_path / "nowhere",), "neither a run nor an adapter"),
        ((tmp_path / "empty",), "neither a run nor an adapter"),
        ((tmp_path / "deep",), f"there is one in {tmp_path / 'deep' / 'math'}"),
        ((tmp_path / "p", "--model", "pocket-llama"), "the network that computed them"),
        ((tmp_path / "prefix", "--model", "pocket-llama"), "the network that computed them"),
        ((tmp_path / "lost",), "'/home/them/llama', which is not here: give --model"),
        ((tmp_path / "nameless",), "does not say which model it is for: give --model"),
        ((tmp_path / "several", "--model", "pocket-llama"), "none called 'default'"),
        (
            (tmp_path / "rows", "--model", "pocket-llama", "--load", f"x={first / 'adapter'}"),
            "leave out --load",
        ),
        ((first / "adapter", "--model", "pocket-opt"), "was made for a llama model"),
        ((first / "adapter", "--template", "alpacca"), "did you mean 'alpaca'"),
        ((first, "--set", "template=plian"), "did you mean 'plain'"),
    ):
        capsys.readouterr()
        assert main("--continue", *words, "--data", data, *FAST, "--out", tmp_path / "out") == 1, (
            said
        )
        error = capsys.readouterr().err.splitlines()
        told = [line for line in error if line.startswith("run.py:") and "identify" not in line]
        assert len(told) == 1, error
        assert said in told[0]
        assert not (tmp_path / "out").exists()
    for words, said in (
        (("evaluate", first, "--set", "continue_from=x"), "continue_from changes nothing"),
        (
            (
                "table",
                "--pocket",
                "--set",
                f"continue_from={first / 'adapter'}",
                "--out",
                tmp_path / "t",
            ),
            "give either",
        ),
    ):
        assert main(*words) == 1
        assert said in capsys.readouterr().err
