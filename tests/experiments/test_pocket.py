"""The shipped pocket models and the main job on them."""

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch
from processes import ROOT

import run as command_line
from data.wordproblems import HELD_OUT, TRAINED, problems
from eval.predict import predict
from eval.score import scores
from model import load_model, load_tokenizer
from model.registry import pocket_names


@pytest.mark.parametrize("name", pocket_names())
def test_the_base_can_do_the_trained_manners_and_not_the_held_out_one(name):
    tests = {
        name: list(islice(problems(name, "test", 0), 10))
        for name in (*TRAINED, HELD_OUT, f"{HELD_OUT}-unseen")
    }
    model, tokenizer = load_model(name, dtype=torch.float32), load_tokenizer(name)
    found = scores(
        predict(model, tokenizer, tests, template="alpaca", batch_size=70, max_new_tokens=48)
    )
    for manner in ("addsub", "singleeq", "svamp", "gsm8k"):
        assert found[manner].accuracy >= 0.9, manner
    assert found[HELD_OUT].accuracy <= 0.1
    assert found[f"{HELD_OUT}-unseen"].accuracy <= 0.1


@pytest.mark.parametrize("name", pocket_names())
def test_a_few_steps_of_the_main_job(tmp_path, name):
    """Every family goes through the whole job: attach, train, measure, save, and the report draws
    its block.
    """
    options = [
        *"--max-steps 2 --items 2 --set eval.before=false --out".split(),
        str(tmp_path / "out"),
    ]
    assert command_line.main(["--model", name, "--adapter", "lora", *options]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 2
    assert (
        f"One block of {name.removeprefix('pocket-')}"
        in (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", pocket_names())
@pytest.mark.parametrize("adapter", ["series", "parallel", "lora"])
def test_the_main_job_keeps_its_word(tmp_path, adapter, name):
    """`python run.py --model M --adapter X`: at most 10 % before, at least 90 % after, and no
    other manner but AQuA below 90 %.
    """
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            "--model",
            name,
            "--adapter",
            adapter,
            "--out",
            str(tmp_path / "out"),
        ],
        check=True,
    )
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["before"][HELD_OUT]["accuracy"] <= 0.1
    assert result["after"][HELD_OUT]["accuracy"] >= 0.9
    assert all(
        score["accuracy"] >= 0.9 for name, score in result["after"].items() if name != "aqua"
    )
