"""--continue: a saved adapter is trained further, from where it was, and its file remembers all
of it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from continued_runs import (
    FAST,
    IDS,
    STILL,
    WEIGHTS,
    first,  # noqa: F401
    go_on,
    logits,
    main,
    other_rows,
    run_section,
)
from safetensors.torch import load_file

from adapters import attach, load_adapter, named_parameters, save_adapter
from adapters.attach import setup
from experiments.continued import load_start
from experiments.history import seen_in_training
from experiments.loading import settings_to_continue
from experiments.report import read_log
from model import load_model
from train.settings import settings


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
