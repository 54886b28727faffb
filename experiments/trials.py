"""The runs of a referee: every method with every rate and seed, and how they rank."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean

import numpy as np

from eval.score import read_predictions
from experiments.jobs import Job
from experiments.results import Result, read_result
from experiments.same_problems import Run, check_same_problems, leaked_in, right_shares
from experiments.statistics import LEVEL, Difference, between, holm, paired

ENOUGH = 3  # seeds from which on their noise can be told


@dataclass(frozen=True)
class PairVerdict:
    """Two methods, the better one first."""

    first: str
    second: str
    difference: Difference
    p_holm: float  # over all pairs

    @property
    def differ(self) -> bool:
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class Ranking:
    """The methods under one way of measuring, the best first."""

    title: str
    seeds: dict[str, list[float]]  # method -> accuracy with each seed
    pairs: list[PairVerdict]

    @property
    def order(self) -> list[str]:
        return list(self.seeds)

    def accuracy(self, method: str) -> float:
        return fmean(self.seeds[method])

    def pair(self, first: str, second: str) -> PairVerdict:
        return next(p for p in self.pairs if {p.first, p.second} == {first, second})


@dataclass(frozen=True)
class Trials:
    """The complete jobs of a referee."""

    jobs: dict[str, dict[float, list[Job]]]  # method -> rate -> a job for each seed
    other_loss: dict[str, list[Job]]  # method -> jobs at its rate, with the other loss weight

    @cached_property
    def results(self) -> dict[Path, Result]:
        """result.json of every job. Raises UserError."""
        return {job.folder: read_result(job.folder, is_run=True) for job in self.all_jobs()}

    @cached_property
    def runs(self) -> dict[Path, Run]:
        """Raises UserError unless all jobs were measured on the same problems."""
        folders = [job.folder for job in self.all_jobs()]
        runs = [Run(at.name, read_predictions(at / "predictions.jsonl")) for at in folders]
        for first, second in pairwise(runs):
            check_same_problems(first, second)
        return dict(zip(folders, runs, strict=True))

    def all_jobs(self) -> Iterator[Job]:
        for rates in self.jobs.values():
            for jobs in rates.values():
                yield from jobs
        for jobs in self.other_loss.values():
            yield from jobs

    def loss(self, method: str, rate: float) -> float:
        """Mean over the seeds of the lowest loss on held-out training rows."""
        losses = [
            self.results[job.folder].validation.get("best_loss") for job in self.jobs[method][rate]
        ]
        mean = fmean(math.inf if one is None else one for one in losses)
        return mean if math.isfinite(mean) else math.inf

    def rate(self, method: str) -> float:
        """The rate with the lowest such loss; the lowest rate of equal ones."""
        return min(sorted(self.jobs[method]), key=lambda rate: self.loss(method, rate))

    def tuned(self) -> dict[str, list[Job]]:
        return {method: rates[self.rate(method)] for method, rates in self.jobs.items()}

    def right(self, job: Job, reader: str = "strict", without=()) -> np.ndarray:
        """[problems], right or wrong, of all test sets one after another."""
        shares = right_shares(self.runs[job.folder].predictions, reader, without)
        return np.concatenate(list(shares.values()))

    def leaked(self) -> set:
        """The problems that the training of any job has seen."""
        return leaked_in(self.runs.values())

    def ranking(self, title: str, chosen: dict[str, list[Job]], reader="strict", without=()):
        """The Ranking of these jobs: accuracy on all problems, and every pair's verdict."""
        answers = {
            method: np.array([self.right(job, reader, without) for job in jobs])
            for method, jobs in chosen.items()
        }
        order = sorted(answers, key=lambda method: -answers[method].mean())
        found = []
        for first, second in combinations(order, 2):
            a, b = answers[first], answers[second]
            enough = len(a) >= ENOUGH
            found.append(between(a, b) if enough else paired(a.mean(axis=0), b.mean(axis=0)))
        adjusted = holm([difference.p for difference in found])
        pairs = [
            PairVerdict(*names, difference, p)
            for names, difference, p in zip(combinations(order, 2), found, adjusted, strict=True)
        ]
        seeds = {method: answers[method].mean(axis=1).tolist() for method in order}
        return Ranking(title, seeds, pairs)


@dataclass(frozen=True)
class Verdict:
    """What the referee found."""

    trials: Trials
    untuned: float  # the rate that every method has without tuning
    rankings: list[Ranking]  # tuned, and in other ways of measuring
    problems: int  # of the tests
    leaked: int  # of these, seen in training

    @property
    def main(self) -> Ranking:
        return self.rankings[0]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.main.seeds.values())))

    def facts(self) -> dict:
        """For programs."""
        trials = self.trials
        return {
            "methods": {
                method: {
                    "rate": trials.rate(method),
                    "validation_loss": {str(rate): trials.loss(method, rate) for rate in rates},
                    "runs": [job.folder.name for job in trials.tuned()[method]],
                }
                for method, rates in trials.jobs.items()
            },
            "untuned_rate": self.untuned,
            "problems": self.problems,
            "leaked_problems": self.leaked,
            "rankings": [
                {
                    "title": ranking.title,
                    "accuracy_of_seeds": ranking.seeds,
                    "pairs": [asdict(pair) | {"differ": pair.differ} for pair in ranking.pairs],
                }
                for ranking in self.rankings
            ],
        }
