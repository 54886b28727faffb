"""The shipped pocket model and the main job on it."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from data.wordproblems import HELD_OUT, TRAINED, problems
from eval.score import predict, scores
from model import load_model, load_tokenizer

ROOT = Path(__file__).parent.parent


def test_the_base_can_do_the_trained_manners_and_not_the_held_out_one():
    tests = {name: list(islice(problems(name, "test", 0), 50)) for name in (*TRAINED, HELD_OUT, f"{HELD_OUT}-unseen")}
    model, tokenizer = load_model("pocket-llama", dtype=torch.float32), load_tokenizer("pocket-llama")
    found = scores(predict(model, tokenizer, tests, template="alpaca", batch_size=50, max_new_tokens=48))
    for name in ("addsub", "singleeq", "svamp", "gsm8k"):
        assert found[name].accuracy >= 0.9, name
    assert found[HELD_OUT].accuracy <= 0.1
    assert found[f"{HELD_OUT}-unseen"].accuracy <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["series", "parallel", "lora"])
def test_the_main_job_keeps_its_word(tmp_path, adapter):
    """`python run.py --adapter X`: at most 10 % before, at least 90 % after, and no other manner but AQuA below 90 %."""
    subprocess.run([sys.executable, str(ROOT / "run.py"), "--adapter", adapter, "--out", str(tmp_path / "out")], check=True)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["before"][HELD_OUT]["accuracy"] <= 0.1
    assert result["after"][HELD_OUT]["accuracy"] >= 0.9
    assert all(score["accuracy"] >= 0.9 for name, score in result["after"].items() if name != "aqua")
