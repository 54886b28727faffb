"""compare: runs on the same problems, in pairs."""

import json
import random

import pytest
from in_command import command
from scipy import stats

from experiments.compare import ALL, compare
from files.errors import UserError


def write_run(folder, sets, settings="", facts=None, seeds=(), **changes):
    """A folder with predictions; sets: test set -> right or wrong by problem."""
    folder.mkdir()
    lines = []
    for name, right in sets.items():
        for index, is_right in enumerate(right):
            for seed in seeds or (None,):
                line = {
                    "set": name, "index": index, "instruction": f"{name}{index}", "prompt": "p",
                    "output": "o", "gold": "1", "answer": 1.0, "right": bool(is_right),
                    "paper_answer": 1.0, "paper_right": not is_right,
                }  # fmt: skip
                line |= {} if seed is None else {"seed": seed}
                lines.append(line | changes.get(f"{name}{index}", {}))
    random.Random(0).shuffle(lines)  # their order is no part of the comparison
    (folder / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "run.toml").write_text(settings or "seed = 0\n")
    if facts:
        (folder / "result.json").write_text(json.dumps(facts))
    return folder


A = {"x": [1] * 12 + [0] * 2 + [1] * 20 + [0] * 6, "y": [1, 0, 1]}
B = {"x": [0] * 12 + [1] * 2 + [1] * 20 + [0] * 6, "y": [1, 1, 1]}


@pytest.fixture
def runs(tmp_path):
    first = 'seed = 0\ndevice = "cpu"\n[train]\nlearning_rate = 0.01\n[adapter]\npreset = "lora"\n'
    second = first.replace("lora", "dora").replace("0.01", "0.1").replace("cpu", "cuda")
    facts = {"trainable_parameters": 1234, "peak_memory_bytes": 5_000_000, "seconds": 60}
    facts |= {"model": "m", "data": "d", "after": {}, "steps": 1}
    return [write_run(tmp_path / "a", A, first, facts), write_run(tmp_path / "b", B, second)]


def test_a_pair_by_set_and_over_all_problems(runs):
    found = {pair.tests: pair for pair in compare(runs).pairs}
    assert list(found) == [ALL, "x", "y"]
    assert (found["x"].only, found["y"].only, found[ALL].only) == ((12, 2), (0, 1), (12, 3))
    assert found[ALL].difference.mean == pytest.approx(9 / 43)
    assert found[ALL].accuracy == pytest.approx((34 / 43, 25 / 43))
    p = stats.binomtest(3, 15).pvalue
    assert found[ALL].difference.p == found[ALL].p_holm == pytest.approx(p)
    of_x = stats.binomtest(2, 14).pvalue
    assert found["x"].p_holm == pytest.approx(2 * of_x)  # two sets
    assert found[ALL].differ
    assert found["x"].differ
    assert not found["y"].differ


def test_many_runs_share_one_correction(runs, tmp_path):
    third = write_run(tmp_path / "c", A)
    pairs = [pair for pair in compare([*runs, third]).pairs if pair.tests == ALL]
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    p = stats.binomtest(3, 15).pvalue
    assert [pair.p_holm for pair in pairs] == pytest.approx([3 * p, 1.0, 3 * p])


def test_other_readers_leaks_and_several_answers(runs, tmp_path):
    paper = compare(runs, "paper").pairs[0]
    assert paper.only == (3, 12)
    leaking = write_run(tmp_path / "leak", A, x0={"leak": "twin"}, x1={"leak": "near"})
    assert compare([leaking, runs[1]]).pairs[0].only == (12, 3)
    assert compare([leaking, runs[1]], clean=True).pairs[0].only == (10, 3)
    assert compare([runs[1], leaking], clean=True).pairs[0].only == (3, 10)
    drawn = write_run(tmp_path / "drawn", A, seeds=(0, 1))  # two answers count as one problem
    assert compare([drawn, runs[1]]).pairs[0].only == (12, 3)


@pytest.mark.parametrize(
    ("sets", "changes", "said"),
    [
        ({"x": A["x"]}, {}, "test sets x, y and x"),
        ({"x": A["x"][:-1], "y": A["y"]}, {}, "x has 40 and 39 problems; only one of them has"),
        (A, {"y1": {"instruction": "z"}}, "y 1 has another text"),
        (A, {"x3": {"gold": "2"}}, "x 3 has another label"),
    ],
)
def test_runs_on_other_problems_are_refused(runs, tmp_path, sets, changes, said):
    other = write_run(tmp_path / "other", sets, **changes)
    with pytest.raises(UserError, match="a and other were not measured on the same") as error:
        compare([runs[0], other])
    assert said in str(error.value)


def test_the_command_as_text_markdown_and_json(runs):
    told = " ".join(command("compare", *runs).split())
    assert "a - b: +20.9 [+3.0, +37.0] points, p 0.035: these two trained models differ" in told
    assert "train.learning_rate 0.01 0.1" in told
    assert "adapter.preset lora dora" in told
    assert "device" not in told
    assert "a 1,234 5 MB 60" in told
    assert "| a | b | x | 80.0% | 55.0% |" in command("compare", *runs, "--markdown")
    facts = json.loads(command("compare", *runs, "--json"))
    assert [pair["tests"] for pair in facts["pairs"]] == [ALL, "x", "y"]
    assert facts["pairs"][0]["only"] == [12, 3]
    assert facts["pairs"][0]["differ"] is True
    assert facts["settings"]["adapter.preset"] == ["lora", "dora"]
    assert facts["cost"]["a"]["peak_memory_bytes"] == 5_000_000


def test_wrong_uses_are_one_line(runs, tmp_path):
    for words, said in (
        ([runs[0]], "give a second run"),
        ([runs[0], runs[0]], "is given twice"),
        ([runs[0], tmp_path], "holds no predictions.jsonl"),
        ([*runs, "--reader", "x"], "unknown reader"),
    ):
        told = command("compare", *words, status=1)
        assert said in told
        assert told.count("\n") == 1
