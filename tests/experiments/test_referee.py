"""referee: equal budgets, rates chosen on held-out rows, and the verdict on made-up results."""

import json

import numpy as np
import processes
import pytest
from conftest import write_sums
from in_command import command

from experiments import jobs as jobs_module
from experiments.grid import make_grid
from experiments.grid_jobs import jobs_of
from experiments.referee import RATE, by_method, first_jobs, run_referee, second_jobs
from files.errors import UserError

GRID = """
models = ["pocket-llama"]
adapters = ["lora", "ia3"]
seeds = [0, 1, 2]
data = "SUMS"
[axes]
train.learning_rate = [0.01, 0.1]
[settings.train]
validation_rows = 4
max_steps = 2
warmup_steps = 0
batch_size = 4
[settings]
eval.before = false
eval.max_new_tokens = 2
"""


def grid_of(tmp_path, *changes, **given):
    text = GRID.replace("SUMS", str(write_sums(tmp_path / "sums.json")))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "grid.toml").write_text(text)
    return make_grid(tmp_path / "grid.toml", **given)


# ---------------------------------------------------------------- results that are made up
PROBLEMS = 200
LOSSES = {("lora", 0.01): 0.5, ("lora", 0.1): 0.4, ("ia3", 0.01): 0.6, ("ia3", 0.1): 0.9}


def write_results(jobs, share, losses=LOSSES):
    """A complete run of each job; share(job): of right answers."""
    for job in jobs:
        rate = job.values[RATE]
        rng = np.random.default_rng([job.seed, int(1000 * rate), len(job.folder.name)])
        right = rng.random(PROBLEMS) < share(job)
        job.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "set": "x", "index": n, "instruction": f"x{n}", "prompt": "p", "output": "o",
                "gold": "1", "answer": 1.0, "right": bool(one), "paper_answer": 1.0,
                "paper_right": bool(one) and job.adapter == "ia3",
            }
            | ({"leak": "twin"} if n < 20 else {})
            for n, one in enumerate(right)
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (job.folder / "predictions.jsonl").write_text(text)
        loss = losses[job.adapter, rate] + 0.01 * job.seed
        facts = {"validation": {"best_loss": loss, "best_step": 2}, "status": 0, "seconds": 9}
        facts |= {"trainable_parameters": 64, "peak_memory_bytes": 10**6, "steps": 2, "after": {}}
        facts |= {"model": job.model, "data": job.settings.data}
        (job.folder / "result.json").write_text(json.dumps(facts))


def share(job) -> float:
    """lora is the better one at its own rate, ia3 with the rate untuned (0.01)."""
    by_run = {("lora", 0.1): 0.9, ("lora", 0.01): 0.3, ("ia3", 0.01): 0.6, ("ia3", 0.1): 0.95}
    return by_run[job.adapter, job.values[RATE]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(grid, folder, verdict) of a referee whose runs are complete already."""
    folder = tmp_path_factory.mktemp("judged")
    grid, out = grid_of(folder), folder / "out"
    write_results(first_jobs(grid, out), share)
    write_results(second_jobs(grid, out), share)
    return grid, out, run_referee(grid, out, say=lambda line: None)


def test_the_rate_is_chosen_on_held_out_rows_and_not_on_the_tests(judged):
    *_, verdict = judged
    assert verdict.trials.rate("lora") == 0.1
    assert verdict.trials.rate("ia3") == 0.01  # although its tests are better with 0.1
    assert verdict.main.order == ["lora", "ia3"]
    assert verdict.main.accuracy("lora") == pytest.approx(0.9, abs=0.04)
    pair = verdict.main.pairs[0]
    assert (pair.first, pair.second, pair.differ) == ("lora", "ia3", True)
    assert pair.difference.low < 0.3 < pair.difference.high


def test_the_ranking_is_made_again_in_other_ways(judged):
    _, out, verdict = judged
    titles = [ranking.title for ranking in verdict.rankings]
    assert titles == [
        "rate tuned on held-out rows", "rate left at 0.01", "loss over the prompt too",
        "the paper's reader", "without leaked problems",
    ]  # fmt: skip
    _, untuned, prompt, paper, clean = verdict.rankings
    runs = verdict.trials.other_loss["lora"]
    assert prompt.seeds["lora"] == [verdict.trials.right(job).mean() for job in runs]
    assert prompt.seeds["lora"] != verdict.main.seeds["lora"]
    assert untuned.order == paper.order == ["ia3", "lora"]
    assert untuned.accuracy("lora") == pytest.approx(0.3, abs=0.06)
    assert paper.accuracy("lora") == 0
    assert verdict.leaked == 20
    right = [verdict.trials.right(job)[20:].mean() for job in verdict.trials.tuned()["lora"]]
    assert clean.seeds["lora"] == pytest.approx(right)
    text = (out / "referee.md").read_text()
    assert "(differ: ia3 is the better one)" in text
    assert "lora: 0.1 is the highest rate tried" in text
    assert f"| lora | {100 * verdict.main.accuracy('lora'):.1f}% [" in text
    facts = json.loads((out / "referee.json").read_text())
    assert facts["methods"]["ia3"]["rate"] == 0.01
    assert facts["rankings"][0]["pairs"][0]["differ"] is True
    page = (out / "referee.html").read_text()
    assert "<h2>How the ranking changes</h2>" in page


def test_the_other_loss_is_measured_at_the_chosen_rates(judged):
    grid, out, _ = judged
    jobs = second_jobs(grid, out)
    found = {(job.adapter, job.values[RATE], job.seed) for job in jobs}
    assert found == {(m, r, s) for m, r in (("lora", 0.1), ("ia3", 0.01)) for s in range(3)}
    assert {job.settings.train.prompt_weight for job in jobs} == {1.0}


def test_one_seed_gives_no_verdict_on_methods(tmp_path):
    grid = grid_of(tmp_path, ("seeds = [0, 1, 2]", "seeds = [4]"))
    write_results(first_jobs(grid, tmp_path / "out"), share)
    write_results(second_jobs(grid, tmp_path / "out"), share)
    said = []
    run_referee(grid, tmp_path / "out", say=said.append)
    assert "the verdict is on these trained models, not on the methods" in "\n".join(said)


def test_a_loss_that_is_not_finite_is_never_the_lowest(tmp_path):
    grid = grid_of(tmp_path)
    jobs = first_jobs(grid, tmp_path / "out")
    write_results(jobs, share, LOSSES | {("lora", 0.01): float("nan")})
    assert by_method(jobs).rate("lora") == 0.1


def test_runs_on_other_problems_are_refused(tmp_path):
    grid = grid_of(tmp_path)
    jobs = first_jobs(grid, tmp_path / "out")
    write_results(jobs, share)
    write_results(second_jobs(grid, tmp_path / "out"), share)
    file = jobs[3].folder / "predictions.jsonl"
    file.write_text(file.read_text().replace('"gold": "1"', '"gold": "2"', 1))
    with pytest.raises(UserError, match="were not measured on the same problems"):
        run_referee(grid, tmp_path / "out", say=lambda line: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[axes]\ntrain.learning_rate = [0.01, 0.1]", ""), "has the rates as an axis"),
        (("validation_rows = 4", ""), "set train.validation_rows"),
        (('["lora", "ia3"]', '["lora"]'), "two methods or more"),
        (("[0.01, 0.1]", "[0.02, 0.1]"), "should hold 0.01"),
        (('["pocket-llama"]', '["pocket-llama", "pocket-opt"]'), "one model and one data set"),
    ],
)
def test_a_grid_that_is_no_fair_trial_is_refused(change, said, tmp_path):
    with pytest.raises(UserError, match=said):
        first_jobs(grid_of(tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_with_other_budgets_are_refused(tmp_path):
    grid = grid_of(tmp_path)
    parts = [{"adapters": ["lora"]}, {"adapters": ["ia3"], "seeds": [0, 1]}]
    path = tmp_path / "parts.toml"
    rows = "\n".join(
        "[[parts]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in part.items())
        for part in parts
    )
    path.write_text((tmp_path / "grid.toml").read_text() + rows)
    with pytest.raises(UserError, match="lora and ia3 do not have the same rates and seeds"):
        first_jobs(make_grid(path), tmp_path / "out")
    assert len(jobs_of(grid, tmp_path / "out")) == 2 * 2 * 3 + 1


# ---------------------------------------------------------------- real runs
def test_two_methods_from_training_to_the_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "subprocess", processes)
    grid_of(tmp_path, ("seeds = [0, 1, 2]", "seeds = [0]"))
    words = ("referee", tmp_path / "grid.toml", "--out", tmp_path / "out", "--set", "eval.items=2")
    told = command(*words)
    assert "4 runs in" in told
    assert "2 runs in" in told  # with the other loss
    facts = json.loads((tmp_path / "out" / "referee.json").read_text())
    assert set(facts["methods"]) == {"lora", "ia3"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    assert len(stamps) == 6
    one = next(iter(stamps))
    one.unlink()  # as if it had been killed
    command(*words)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    assert {path for path in stamps if again[path] != stamps[path]} == {one}
