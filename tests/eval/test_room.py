"""Test prompts that a model has no positions for: named before training, counted as wrong, and
the others answered.
"""

import json
from dataclasses import replace

import pytest
import torch

import run as command_line
from adapters import attach
from data.prompts import template
from eval.predict import predict
from eval.room import positions_of, room_for, room_lines
from eval.score import scores, tables
from model import load_model, load_tokenizer
from train.settings import Eval

HOW = Eval(batch_size=3, max_new_tokens=12)
PLAIN = template("plain")
SUM = "Tom has {} pens. Amy gives Tom {} more. How many pens does Tom have now?"


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


@pytest.fixture(scope="module", params=["opt", "gptj"])
def pocket(request):
    return load_model(f"pocket-{request.param}", dtype=torch.float32), load_tokenizer(
        f"pocket-{request.param}"
    )


def prompt_of(tokenizer, tokens: int) -> dict:
    """A row whose plain prompt has so many tokens."""
    row = {"instruction": SUM.format(3, 4), "input": "", "output": "", "answer": "7"}
    while (have := len(tokenizer.encode(PLAIN.prompt(row)))) < tokens:
        row["instruction"] += " a" * max(1, (tokens - have) // 2) if tokens - have > 1 else "."
    assert have == tokens
    return row


def rows_of(tokenizer, lengths) -> list[dict]:
    return [prompt_of(tokenizer, length) for length in lengths]


def test_how_much_room_there_is():
    assert room_for(None, 10**6, 48) == 48
    assert [room_for(256, tokens, 48) for tokens in (1, 209, 210, 255, 256, 257)] == [
        48,
        48,
        47,
        2,
        1,
        0,
    ]


def test_a_prompt_has_as_many_new_tokens_as_the_model_has_positions(pocket):
    """The model itself raises for one more: what is counted is what there is."""
    from eval.generate import generate

    model, tokenizer = pocket
    assert positions_of(model) == 256
    for tokens in (250, 256):
        ids = torch.tensor([tokenizer.encode(PLAIN.prompt(prompt_of(tokenizer, tokens)))])
        room = room_for(256, tokens, 99)
        assert len(generate(model, ids, max_new_tokens=room)[0]) == room
        with pytest.raises(ValueError, match="past the model's last"):
            generate(model, ids, max_new_tokens=room + 1)


def test_virtual_tokens_take_positions(pocket):
    family = pocket[0].family
    for preset, length in (("prefix", 7), ("prompt", 5)):
        model = load_model(f"pocket-{family}", dtype=torch.float32)
        attach(model, preset, length=length)
        assert positions_of(model) == 256 - length
        long, fitting = rows_of(pocket[1], (257 - length, 256 - length))
        found = predict(model, pocket[1], {"addsub": [long, fitting]}, template=PLAIN, decoding=HOW)
        assert [one.get("too_long", False) for one in found] == [True, False]
    assert positions_of(load_model("pocket-llama")) is None
    assert positions_of(load_model("pocket-bloom")) is None


def test_what_does_not_fit_is_wrong_and_the_rest_is_answered_as_ever(pocket):
    model, tokenizer = pocket
    lengths = [40, 300, 250, 40, 257, 250, 256, 248, 240]
    rows = rows_of(tokenizer, lengths)
    reference = predict(
        model, tokenizer, {"addsub": rows}, template=PLAIN, decoding=replace(HOW, batch_size=1)
    )
    assert [one.get("too_long", False) for one in reference] == [n > 256 for n in lengths]
    for one in reference:
        if one.get("too_long"):
            assert (one["output"], one["right"], one["paper_right"], one["answer"], one["cut"]) == (
                "",
                False,
                False,
                None,
                False,
            )
    for size in (2, 64):
        assert (
            predict(
                model,
                tokenizer,
                {"addsub": rows},
                template=PLAIN,
                decoding=replace(HOW, batch_size=size),
            )
            == reference
        )
    short = [row for row, n in zip(rows, lengths, strict=True) if n < 200]
    assert [
        one["output"]
        for one in predict(model, tokenizer, {"addsub": short}, template=PLAIN, decoding=HOW)
    ] == [one["output"] for one, n in zip(reference, lengths, strict=True) if n < 200]
    assert scores(reference)["addsub"].total == 9
    assert tables(reference)["addsub"]["too_long"] == 2
    assert "too_long" not in tables(reference[:1])["addsub"]


@pytest.mark.parametrize("more", [{"beams": 2}, {"temperature": 0.7, "seeds": [0, 1]}], ids=str)
def test_beams_and_drawn_answers_stop_where_the_positions_do(pocket, more):
    rows = rows_of(pocket[1], (252, 300, 40))
    found = predict(*pocket, {"addsub": rows}, template=PLAIN, decoding=replace(HOW, **more))
    assert [one.get("too_long", False) for one in found[:: len(found) // 3]] == [False, True, False]


def test_options_are_weighed_where_they_fit(pocket):
    model, tokenizer = pocket
    rows = [row | {"answer": "A"} for row in rows_of(tokenizer, (40, 257, 254))]
    found = predict(
        model,
        tokenizer,
        {"mine": rows},
        template=PLAIN,
        decoding=replace(HOW, scoring="likelihood"),
        reads={"mine": "letter"},
    )
    assert [("likelihoods" in one, one.get("too_long", False)) for one in found] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_an_interrupted_evaluation_goes_on(pocket, tmp_path, monkeypatch):
    rows = {"addsub": rows_of(pocket[1], (40, 300, 250, 44, 41))}
    whole = predict(*pocket, rows, template=PLAIN, decoding=HOW)
    journal = tmp_path / "p.jsonl.part"
    assert predict(*pocket, rows, template=PLAIN, decoding=HOW, journal=journal) == whole
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 4  # what needs no answer is not in it
    journal.write_text("\n".join(lines[:3]) + "\n")
    assert predict(*pocket, rows, template=PLAIN, decoding=HOW, journal=journal) == whole


def test_the_first_three_are_named(pocket):
    rows = rows_of(pocket[1], (300, 40, 301, 302, 303, 250))
    none, short = room_lines(*pocket, {"mine": rows}, PLAIN, HOW)
    assert none == (
        "4 of 6 test prompts are longer than the model's 256 positions and count as wrong: "
        "mine row 1 (300 tokens), mine row 3 (301 tokens), mine row 4 (302 tokens) ..."
    )
    assert "1 of 6 test prompts leave less than eval.max_new_tokens = 12" in short
    assert "mine row 6 (250 tokens)" in short
    assert room_lines(*pocket, {"mine": rows[1:2]}, PLAIN, HOW) == []


def test_a_run_names_them_before_it_trains_and_measures_the_rest(tmp_path, capsys, monkeypatch):
    tokenizer = load_tokenizer("pocket-opt")
    rows = [row | {"output": "The answer is 7."} for row in rows_of(tokenizer, (40, 41, 42, 300))]
    (tmp_path / "train.json").write_text(json.dumps(rows[:3]))
    (tmp_path / "mine.json").write_text(json.dumps(rows[:1] + rows[3:]))
    words = (
        *"--model pocket-opt --adapter lora --template plain --data".split(),
        tmp_path / "train.json",
        "--tests",
        tmp_path / "mine.json",
        *"--train-on-test --max-steps 1 --set eval.max_new_tokens=3".split(),
    )
    assert main(*words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.index("1 of 2 test prompts are longer than the model's 256 positions") < said.index(
        "before:"
    )
    assert "1 of 2 prompts are longer than the model's positions and count as wrong" in said
    facts = json.loads((tmp_path / "out" / "result.json").read_text())
    assert facts["after"]["mine"]["too_long"] == 1
    assert main("inspect", tmp_path / "out", "--wrong") == 0
    assert "the prompt is longer than the model's positions" in capsys.readouterr().out
    assert main("evaluate", tmp_path / "out", "--max-new-tokens", "3") == 0
    assert "1 of 2 test prompts are longer" in capsys.readouterr().out


def test_a_row_to_train_on_that_does_not_fit_is_said_before_the_first_step(tmp_path, capsys):
    rows = rows_of(load_tokenizer("pocket-gptj"), (300,))
    (tmp_path / "long.json").write_text(
        json.dumps([row | {"output": "7", "answer": ""} for row in rows])
    )
    words = (
        *"--model pocket-gptj --adapter lora --template plain --data".split(),
        tmp_path / "long.json",
        *"--set train.cutoff=400 --max-steps 1".split(),
    )
    assert main(*words, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "the model has positions for 256: set train.cutoff=256" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
