"""Greedy decoding: what it returns, and that nothing about the batch changes it."""

import itertools

import pytest
import torch
from conftest import DEVICES

from adapters import attach
from data.prompts import template
from data.wordproblems import problems
from eval.generate import Sampling, generate, left_pad
from eval.predict import predict
from eval.score import Score, scores
from model import UserError, load_model, load_tokenizer
from train.settings import Eval

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]


@pytest.mark.parametrize("device", DEVICES)
def test_each_token_is_the_most_likely_after_those_before(folder, device):
    model = load_model(str(folder), device=device)
    ids = torch.tensor([PROMPTS[1]], device=device)
    for token in generate(model, ids, max_new_tokens=9)[0]:
        assert token == model(ids)[0, -1].argmax()
        ids = torch.cat((ids, torch.tensor([[token]], device=device)), dim=1)


def test_results_do_not_depend_on_batch_padding_or_order(tiny):
    attach(tiny, "parallel", size=4, init="bert")
    stop = [
        generate(tiny, torch.tensor([row]), max_new_tokens=3)[0][2] for row in PROMPTS[:2]
    ]  # so that rows end at different times
    alone = [
        generate(tiny, *left_pad([row], 0, "cpu"), max_new_tokens=12, stop_ids=stop)[0]
        for row in PROMPTS
    ]
    assert len({len(row) for row in alone}) > 1
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        together = generate(
            tiny, *left_pad([PROMPTS[i] for i in order], 0, "cpu"), max_new_tokens=12, stop_ids=stop
        )
        assert together == [alone[i] for i in order]


def test_a_stop_token_ends_a_row_and_is_not_returned(tiny):
    free = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6)[0]
    first = free.index(free[3])
    assert (
        generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6, stop_ids=[free[3]])[0]
        == free[:first]
    )


def test_what_cannot_be_continued_says_so(tiny):
    ids = torch.tensor([[3, 4], [5, 6]])
    with pytest.raises(UserError, match="empty prompt"):
        generate(tiny, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(UserError, match="empty prompt"):
        generate(tiny, ids, torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(UserError, match="padded on the left"):
        generate(tiny, ids, torch.tensor([[1, 1], [1, 0]]))
    settings = {
        "1 or more": {"beams": 0},
        "sampling needs beams=1": {"beams": 2, "sampling": Sampling(), "seeds": [0, 1]},
        "need beams=1": {"beams": 2, "stop": bool},
        "a seed for each of the 2 rows, not none": {"sampling": Sampling()},
        "a seed for each of the 2 rows, not 1": {"sampling": Sampling(), "seeds": [0]},
        "seeds should be": {"sampling": Sampling(), "seeds": [0, -1]},
        "seeds are for sampling": {"seeds": [0, 1]},
        "temperature": {"sampling": Sampling(temperature=0), "seeds": [0, 1]},
        "top_k": {"sampling": Sampling(top_k=-1), "seeds": [0, 1]},
        "top_p": {"sampling": Sampling(top_p=1.5), "seeds": [0, 1]},
    }
    for said, wrong in settings.items():
        with pytest.raises(UserError, match=said):
            generate(tiny, ids, **wrong)


def test_accuracy_does_not_depend_on_batch_size_and_predictions_are_kept_whole():
    model, tokenizer = (
        load_model("pocket-llama", dtype=torch.float32),
        load_tokenizer("pocket-llama"),
    )
    tests = {
        name: list(itertools.islice(problems(name, "test", 0), 8)) for name in ("addsub", "aqua")
    }
    one, many = (
        predict(
            model,
            tokenizer,
            tests,
            template=template("alpaca"),
            decoding=Eval(batch_size=size, max_new_tokens=48),
        )
        for size in (3, 16)
    )
    assert one == many
    assert [(p["set"], p["index"]) for p in one] == [(name, i) for name in tests for i in range(8)]
    assert set(one[0]) == {
        "set",
        "index",
        "instruction",
        "prompt",
        "gold",
        "output",
        "answer",
        "right",
        "paper_answer",
        "paper_right",
        "cut",
    }
    assert scores(one)["addsub"].right == sum(p["right"] for p in one if p["set"] == "addsub") >= 6


def test_the_interval_is_wilsons():
    low, high = Score(81, 263).interval  # the example of Newcombe (1998), method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert Score(0, 20).interval[0] == 0
    assert Score(20, 20).interval[1] == 1


def test_rows_that_no_token_names_are_never_chosen(tiny):
    free = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6)[0]
    below = max(free)
    masked = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6, vocab_size=below)[0]
    assert max(masked) < below
    position = free.index(below)
    assert masked[:position] == free[:position]


def test_evaluation_leaves_out_rows_that_no_token_names(tmp_path):
    """A pocket model with rows added to its embedding, as GPT-J has them, that would always win."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    from model.registry import POCKET

    folder = tmp_path / "gptj"
    shutil.copytree(POCKET / "gptj", folder)
    weights, config = (
        load_file(str(folder / "model.safetensors")),
        json.loads((folder / "config.json").read_text()),
    )
    for name, value in (
        ("transformer.wte.weight", 0.0),
        ("lm_head.weight", 0.0),
        ("lm_head.bias", 1000.0),
    ):
        weights[name] = torch.cat(
            (weights[name], torch.full((7, *weights[name].shape[1:]), value, dtype=torch.float16))
        )
    save_file(weights, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": config["vocab_size"] + 7})
    )
    tests = {"addsub": list(itertools.islice(problems("addsub", "test", 0), 4))}
    found = [
        predict(
            load_model(name, dtype=torch.float32),
            load_tokenizer(name),
            tests,
            template=template("alpaca"),
            decoding=Eval(batch_size=4, max_new_tokens=40),
        )
        for name in ("pocket-gptj", str(folder))
    ]
    assert found[0] == found[1]
