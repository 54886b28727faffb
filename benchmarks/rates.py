"""Accuracy against the learning rate: short runs of every preset on a pocket model.

A cell has the accuracy on the manner of word problems that the model never saw, after 60 steps. The
rate that `--find-rate` would take, by the loss on held-out training rows, is in bold.
"""

from collections.abc import Iterator
from dataclasses import replace

from adapters.config import independent_presets
from benchmarks.report import is_wanted
from eval.predict import predict
from eval.score import scores
from experiments.find_rate import short_runs
from experiments.prepare import prepare
from train.parallel import SINGLE
from train.settings import settings

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
TESTS, PROBLEMS = "multiarith", 50


def rates_lines(model: str, only: str) -> Iterator[str]:
    """A Markdown table, a row a preset. only: names that hold one of these, with commas."""
    yield "| adapter | " + " | ".join(f"{rate:g}" for rate in RATES) + " |"
    yield "|---" * (1 + len(RATES)) + "|"
    for preset in independent_presets():
        if is_wanted(preset, only):
            yield row(model, preset)


def row(model: str, preset: str) -> str:
    s = settings(options={"model": model, "adapter": {"preset": preset}, "tests": [TESTS]})
    job = prepare(replace(s, eval=replace(s.eval, items=PROBLEMS)), SINGLE)
    attempt, cells = short_runs(job), {}
    for rate in RATES:
        loss = attempt(rate)
        answers = predict(
            job.model, job.tokenizer, job.tests, template=job.template,
            decoding=job.settings.eval, title=preset, reads=job.data.reads,
        )  # fmt: skip
        cells[rate] = loss, f"{100 * scores(answers)[TESTS].accuracy:.0f}"
    best = min(cells, key=lambda rate: cells[rate][0])
    texts = [f"**{text}**" if rate == best else text for rate, (_, text) in cells.items()]
    return f"| `{preset}` | " + " | ".join(texts) + " |"
