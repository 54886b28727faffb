"""Texts and requests of lm-evaluation-harness."""

from types import SimpleNamespace

import pytest
import torch

from model import load_model, load_tokenizer

TEXTS = [
    ("Tom has 3 apples and gets 4 more. How many apples has he?", " 7"),
    (
        "Tom has 3 apples and gets 4 more. How many apples has he? ",
        "7 apples",
    ),  # the space belongs to what follows
    ("Tom has 3 apples.\n\n", "Tom has 12 pears."),
    ("", "Tom has 3 apples."),
    (
        "<eos>Ann",
        " has 3 pears.",
        # not Tom's apples: HFLM takes two requests of the same ids for one, wherever their contexts
        # end
    ),
    ("one two " * 400, "three"),  # longer than the model
]


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket-llama", dtype=torch.float32), load_tokenizer("pocket-llama")


def requests(*arguments: tuple) -> list:
    return [SimpleNamespace(args=one) for one in arguments]
