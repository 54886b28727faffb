"""result.json of any form: read as typed values, or refused by the name of what is wrong."""

import json

import pytest

from eval.score import Score
from experiments.entries import entry
from experiments.inspect import run_lines
from experiments.jobs import Job
from experiments.results import read_result
from files.errors import UserError
from train.settings import settings

SUMS = {"right": 3, "total": 5, "paper_reader": {"right": 2, "total": 5}, "accuracy": 0.6}
ROW = {"row": "LoRA", "figures": {"average": 1}, "comparable": False, "differs": "all"}
COST = {"steps": 2, "seconds": 9, "trainable_parameters": 7, "of a newer version": [1]}
WHOLE = {"model": "pocket-opt", "data": "wordproblems", "after": {"sums": SUMS}, **COST}
WHOLE |= {"published": [ROW], "seed": 4, "adapter": "lora", "held_out_loss": {"before": 2}}


def write(folder, **changes):
    table = {key: value for key, value in (WHOLE | changes).items() if value is not None}
    (folder / "result.json").write_text(json.dumps(table))
    return folder


def test_what_is_read(tmp_path):
    result = read_result(write(tmp_path), is_run=True)
    assert (result.strict, result.paper) == ({"sums": Score(3, 5)}, {"sums": Score(2, 5)})
    assert (result.steps, result.seconds, result.trainable_parameters) == (2, 9, 7)
    assert result.published[0].figures == {"average": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": None}, "has no steps"),
        ({"after": None}, "has no after"),
        ({"after": {"sums": SUMS | {"right": 6}}}, "6 right of 5 answers"),
        ({"after": {"sums": SUMS | {"right": -2}}}, "sums: right = -2"),
        ({"after": {"sums": SUMS | {"total": 0}}}, "sums: total = 0"),
        ({"after": {"sums": SUMS | {"paper_reader": "x"}}}, "sums: paper_reader should be a table"),
        ({"after": {"sums": 5}}, "sums should be a table"),
        ({"after": "sums"}, "a table of test sets"),
        ({"published": [ROW | {"figures": {"average": "1"}}]}, "figures = "),
        ({"published": {"a": 1}}, "published should be a list"),
        ({"held_out_loss": {"before": "2"}}, "a loss is no number"),
        ({"validation": {"best_loss": True}}, "a loss is no number"),
        ({"problems": "abc"}, "problems = 'abc' should be a list of texts"),
        ({"seconds": 1.5}, "seconds = 1.5 should be a whole number"),
    ],
)
def test_another_form_is_named(tmp_path, changes, said):
    folder = write(tmp_path, **changes)
    with pytest.raises(UserError, match=f"result.json.*{said}"):
        read_result(folder, is_run=True)
    (note,) = run_lines(folder)  # `inspect` says so too
    assert note.startswith(f"note: {folder}")


@pytest.mark.parametrize("other", [{"model": "x"}, {"data": "y"}, {"seed": 5}, {"adapter": "z"}])
def test_a_result_of_another_run_is_not_taken_for_a_jobs(tmp_path, other):
    """result.json was copied from elsewhere, beside settings that fit."""
    made = settings(options={"model": "pocket-opt", "data": "wordproblems", "seed": 4})
    folder = write(tmp_path)
    with pytest.warns(UserWarning, match="log.jsonl has no entry"):
        assert entry(Job(made, "lora", folder)).parameters == 7
    write(folder, **other)
    (key,) = other
    with pytest.raises(UserError, match=f"its result.json is of {key} "):
        entry(Job(made, "lora", folder))
