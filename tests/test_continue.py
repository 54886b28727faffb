"""--continue: a saved adapter is trained further, from where it was, and its file remembers all
of it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_sums
from safetensors.torch import load_file

import run as command_line
from adapters import attach, load_adapter, named_parameters, save_adapter, save_adapters
from adapters.attach import setup
from adapters.formats.base_model import base_name
from data.sources import load_data
from experiments.continued import load_start, settings_to_continue
from experiments.history import seen_in_training
from experiments.report import read_log
from model import load_model
from train.settings import settings

FAST = ("--set", "eval.before=false", "--set", "eval.max_new_tokens=2", "--items", "1")
STILL = ("--max-steps", "1", "--set", "train.learning_rate=1e-12")  # one step that moves nothing
IDS = torch.tensor([[5, 9, 2, 7, 40, 41]])
WEIGHTS = "adapter/adapter_model.safetensors"


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


def other_rows(path: Path) -> Path:
    rows = [
        {
            "instruction": f"A box holds {n} eggs. How many eggs do 3 boxes hold?",
            "output": f"3 * {n} = {3 * n}. The answer is {3 * n}.",
            "answer": str(3 * n),
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run of twelve steps on forty rows, with a prompt of its own."""
    folder = tmp_path_factory.mktemp("first")
    data = write_sums(folder / "sums.json")
    assert (
        main(
            "--adapter",
            "lora",
            "--data",
            data,
            *"--template plain --max-steps 12".split(),
            *FAST,
            "--out",
            folder / "run",
        )
        == 0
    )
    return folder / "run"


def go_on(source: Path, out: Path, *words) -> Path:
    assert main("--continue", source, *words, *FAST, "--out", out) == 0
    return out


def run_section(folder: Path) -> dict:
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())["llm_adapters"][
        "run"
    ]


def logits(folder: Path, model: str = "pocket-llama", dtype=torch.float32) -> torch.Tensor:
    loaded = load_model(model, dtype=dtype)
    load_adapter(loaded, folder)
    with torch.no_grad():
        return loaded(IDS)


# ------------------------------------------------------------- where it begins, and what it becomes
def test_training_begins_at_the_saved_adapter(first, tmp_path):
    out = go_on(first, tmp_path / "out", *STILL)
    torch.testing.assert_close(
        logits(out / "adapter"), logits(first / "adapter"), rtol=1e-5, atol=1e-6
    )
    base = load_model("pocket-llama", dtype=torch.float32)(IDS)
    assert (logits(first / "adapter") - base).abs().max() > 0.1  # it is not simply a new adapter


@pytest.mark.parametrize("form", ["peft", "paper"])
def test_adapters_of_other_programs_go_on_from_where_they_are(first, tmp_path, form):
    model = load_model("pocket-llama", dtype=torch.float32)
    load_adapter(model, first / "adapter")
    save_adapter(model, tmp_path / form, format=form)
    data = other_rows(tmp_path / "other.jsonl")
    out = go_on(
        tmp_path / form, tmp_path / "out", *STILL, "--data", data, "--model", "pocket-llama"
    )
    torch.testing.assert_close(
        logits(out / "adapter"), logits(first / "adapter"), rtol=1e-4, atol=1e-5
    )
    assert [one["data"] for one in run_section(out)["history"]] == [""]  # nobody knows
    trained = go_on(
        tmp_path / form, tmp_path / "more", "--max-steps", "3", "--data", data
    )  # the file names the model
    assert (logits(trained / "adapter") - logits(first / "adapter")).abs().max() > 0.01


def test_the_loss_goes_on_falling_with_an_optimizer_of_its_own(first, tmp_path):
    out = go_on(first, tmp_path / "out", "--max-steps", "12")
    before, after = (
        [entry["loss"] for entry in read_log(folder / "log.jsonl")] for folder in (first, out)
    )
    assert len(before) == len(after) == 12
    assert after[0] < before[0] / 2
    assert sum(after[-4:]) < 0.9 * sum(before[-4:])
    rates = [
        [entry["learning_rate"] for entry in read_log(folder / "log.jsonl")]
        for folder in (first, out)
    ]
    assert rates[0] == rates[1]  # the schedule is a new one


def test_what_is_trained_is_float32_whatever_the_base_is(first):
    model = load_model("pocket-llama", dtype=torch.bfloat16)
    start = load_start(model, settings_to_continue(str(first), options={"dtype": "bfloat16"}))
    trained = named_parameters(model)
    assert trained
    assert {one.dtype for one in trained.values()} == {torch.float32}
    assert all(".adapters.default." in name for name in trained)
    saved = load_file(first / WEIGHTS)
    assert len(saved) == len(trained)
    assert start.preset == "lora"


@pytest.mark.parametrize("preset", ["adalora", "p-tuning", "vera", "lora+bitfit"])
def test_every_kind_of_file_of_ours_goes_on(tmp_path, preset, capsys):
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, preset)
    with torch.no_grad():
        for parameter in named_parameters(model).values():
            parameter += 0.02 * torch.randn(parameter.shape)
    save_adapter(model, tmp_path / "saved", run={"model": "pocket-llama"})
    out = go_on(
        tmp_path / "saved", tmp_path / "out", *STILL, "--data", other_rows(tmp_path / "other.jsonl")
    )
    schedule = "AdaLoRA's schedule starts anew" in capsys.readouterr().out
    assert schedule == (preset == "adalora")
    if preset != "adalora":  # whose only step cuts ranks
        torch.testing.assert_close(
            logits(out / "adapter"), logits(tmp_path / "saved"), rtol=1e-4, atol=1e-4
        )


def test_frozen_members_stay_and_the_trained_one_goes_on(first, tmp_path):
    data = other_rows(tmp_path / "other.jsonl")
    both = tmp_path / "both"
    assert (
        main(
            "--load",
            f"below={first / 'adapter'}",
            *"--adapter parallel --set adapter.size=4 --data".split(),
            data,
            "--max-steps",
            "3",
            *FAST,
            "--out",
            both,
        )
        == 0
    )
    out = go_on(both, tmp_path / "out", "--max-steps", "3")
    for name, same in (("below", True), ("default", False)):
        one, other = (
            load_file(folder / "adapter" / name / "adapter_model.safetensors")
            for folder in (both, out)
        )
        assert all(torch.equal(one[key], other[key]) for key in one) == same
    setup_of = [
        json.loads((folder / "adapter" / "adapters.json").read_text()) for folder in (both, out)
    ]
    assert [one["on"] for one in setup_of] == [["below", "default"]] * 2
    assert setup_of[1]["run"]["loaded"]["below"]["data"].endswith("sums.json")
    assert [one["data"] for one in setup_of[1]["run"]["history"]] == [str(data)]
    model = load_model("pocket-llama", dtype=torch.float32)
    load_start(model, settings_to_continue(str(both)))
    assert setup(model) == (["below", "default"], ["default"])
    leaks, _ = seen_in_training(
        [setup_of[1]["run"]],
        {"t": json.loads(Path(first.parent / "sums.json").read_text())[:9]},
        "",
        [str(first.parent / "sums.json")],
    )
    assert sum(leak["t"].count("twin") for leak in leaks) >= 8  # through the adapter below


# ---------------------------------------------------------------- settings
def test_settings_are_the_runs_but_for_what_is_given(first, tmp_path):
    made = settings_to_continue(str(first))
    theirs = settings(str(first / "run.toml"))
    assert (made.template, made.train, made.data, made.model) == (
        "plain",
        theirs.train,
        theirs.data,
        theirs.model,
    )
    assert (made.adapter, made.continue_from) == (None, str(first / "adapter"))
    toml = tmp_path / "run" / "run.toml"
    shutil.copytree(first, tmp_path / "run")
    toml.write_text(
        toml.read_text()
        .replace("[columns]", '[columns]\ninstruction = "instruction"')
        .replace("tests = []", 'tests = ["x.json"]')
        .replace("train_on_test = false", "train_on_test = true")
    )
    same = settings_to_continue(str(tmp_path / "run"))
    assert (same.columns, same.tests, same.train_on_test) == (
        {"instruction": "instruction"},
        ["x.json"],
        True,
    )
    for options, sets in (({"data": "wordproblems"}, []), ({}, ["data=wordproblems"])):
        other = settings_to_continue(str(tmp_path / "run"), options=options, sets=sets)
        assert (other.data, other.columns, other.tests, other.train_on_test) == (
            "wordproblems",
            {},
            [],
            False,
        )
    changed = settings_to_continue(
        str(first), options={"template": "alpaca", "train": {"max_steps": 3}}
    )
    assert (changed.template, changed.train.max_steps, changed.train.batch_size) == (
        "alpaca",
        3,
        theirs.train.batch_size,
    )


def test_a_folder_says_model_template_and_quantization(first, tmp_path):
    made = settings_to_continue(str(first / "adapter"), options={"data": "wordproblems"})
    assert (made.model, made.template, made.quantize) == ("pocket-llama", "plain", "")
    config = json.loads((first / "adapter" / "adapter_config.json").read_text())
    config["llm_adapters"]["run"] |= {"quantize": "int8"}
    shutil.copytree(first / "adapter", tmp_path / "int8")
    (tmp_path / "int8" / "adapter_config.json").write_text(json.dumps(config))
    assert settings_to_continue(str(tmp_path / "int8")).quantize == "int8"
    assert settings_to_continue(str(tmp_path / "int8"), options={"quantize": ""}).quantize == ""


def test_the_stored_prompt_is_used_and_another_one_is_said(first, tmp_path, capsys):
    shutil.copytree(first / "adapter", tmp_path / "own")
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    config["llm_adapters"]["run"] |= {
        "template": "mine",
        "template_text": {"name": "mine", "text": "Q {instruction} A ", "special": {}},
    }
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps(config))
    data = other_rows(tmp_path / "other.jsonl")
    out = go_on(tmp_path / "own", tmp_path / "out", *STILL, "--data", data)
    (prediction,) = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    assert prediction["prompt"].startswith("Q A box holds")
    assert "template mine, and goes on" not in capsys.readouterr().out
    out = go_on(
        tmp_path / "own", tmp_path / "alpaca", *STILL, "--data", data, "--template", "alpaca"
    )
    assert run_section(out)["template_text"]["name"] == "alpaca"
    assert (
        "it was trained with the template mine, and continues with alpaca"
        in capsys.readouterr().out
    )


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
