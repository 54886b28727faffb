"""Problems and answers of a pocket model."""

import pytest
import torch

from data.prompts import template
from data.sources import load_data
from eval.predict import predict
from model import load_model, load_tokenizer
from train.settings import Eval

HOW = Eval(batch_size=8, max_new_tokens=20)
OPTIONS = ("solution1", "solution2")
PIQA = [
    {
        "instruction": (
            f"Please choose: which is {n}?\n\nSolution1: {n}\n\nSolution2: "
            f"{n + 1}\n\nAnswer format: solution1/solution2"
        ),
        "input": "",
        "output": f"the correct answer is {OPTIONS[n % 2]}",
        "answer": OPTIONS[n % 2],
    }
    for n in range(9)
]


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket-llama", dtype=torch.float32), load_tokenizer("pocket-llama")


@pytest.fixture(scope="module")
def problems():
    tests = load_data("wordproblems").tests
    return {name: tests[name][:9] for name in ("addsub", "gsm8k", "aqua")}


def answers(pocket, problems, how, **more):
    return predict(*pocket, problems, template=template("alpaca"), decoding=how, **more)
