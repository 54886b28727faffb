"""referee: which methods differ when each has the same budget of rates and seeds.

Every method is trained with every rate and seed of a grid. The rate of a method is the one with the
lowest mean loss on training rows that were held out; its runs at that rate are then compared on the
test problems. The verdict is made again for the rate left untuned, the loss over the prompt, the
paper's reader and the problems that training has not seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.axes import short, value_text
from experiments.folders import write_json
from experiments.grid import Grid, parts_of
from experiments.grid_jobs import check_same, jobs_of, settings_of
from experiments.jobs import HERE, Job, Launcher, refuse_failed, run_all
from experiments.referee_report import summary_lines, write_report
from experiments.trials import Trials, Verdict
from files.errors import UserError

RATE, WEIGHT = "train.learning_rate", "train.prompt_weight"


def run_referee(
    grid: Grid, folder: Path, launcher: Launcher = HERE, say: Callable[[str], None] = print
) -> Verdict:
    """Run what is missing and write referee.md, .html and .json to `folder`.

    Raises UserError where runs failed.
    """
    trials = None
    for stage in (first_jobs, second_jobs):
        jobs = stage(grid, folder)
        refuse_failed(run_all(jobs, folder, launcher, say), jobs)
        trials = by_method(jobs) if trials is None else replace(trials, other_loss=methods_of(jobs))
    verdict = judge(trials, untuned_rate(grid, jobs[0]))
    write_json(folder / "referee.json", verdict.facts())
    write_report(folder, verdict)
    say("\n".join(["", *summary_lines(verdict)]))
    say(f"report: {', '.join(str(folder / f'referee.{kind}') for kind in ('md', 'html', 'json'))}")
    return verdict


def next_jobs(grid: Grid, folder: Path) -> list[Job]:
    """The runs of the first stage that is not complete; of the second where both are."""
    jobs = first_jobs(grid, folder)
    return second_jobs(grid, folder) if all(job.done for job in jobs) else jobs


def judge(trials: Trials, untuned: float) -> Verdict:
    """The verdict on complete jobs.

    untuned: the rate of a method without tuning. Raises UserError where the problems of the jobs
    are not the same.
    """
    tuned = trials.tuned()
    job = next(trials.all_jobs())
    leaked = trials.leaked()
    before = {method: rates[untuned] for method, rates in trials.jobs.items()}
    weight = next(iter(trials.other_loss.values()))[0].settings.train.prompt_weight
    loss = "loss over the prompt too" if weight else "loss over the response alone"
    rankings = [
        trials.ranking("rate tuned on held-out rows", tuned),
        trials.ranking(f"rate left at {value_text(untuned)}", before),
        trials.ranking(loss, trials.other_loss),
        trials.ranking("the paper's reader", tuned, "paper"),
    ]
    if leaked:
        rankings.append(trials.ranking("without leaked problems", tuned, without=leaked))
    return Verdict(trials, untuned, rankings, len(trials.right(job)), len(leaked))


# ---------------------------------------------------------------- jobs
def first_jobs(grid: Grid, folder: Path) -> list[Job]:
    """Every method with every rate and seed. Raises UserError for a grid that is no fair trial."""
    jobs = [job for job in jobs_of(replace(grid, base=False), folder) if job.adapter]
    if len({(job.model, job.settings.data) for job in jobs}) > 1:
        raise UserError("a referee's grid has one model and one data set")
    if any(RATE not in job.values for job in jobs):
        raise UserError(f"a referee's grid has the rates as an axis: [axes] {RATE} = [1e-4, 3e-4]")
    if not all(job.settings.train.validation_rows for job in jobs):
        raise UserError(
            "the rate is chosen on training rows that are held out: set train.validation_rows, "
            "such as 100, in the grid's [settings]"
        )
    budgets = {
        method: {(job.values[RATE], job.seed) for job in of}
        for method, of in methods_of(jobs).items()
    }
    if len(budgets) < 2:
        raise UserError("a referee's grid has two methods or more (adapters, or another axis)")
    first, budget = next(iter(budgets.items()))
    for method, other in budgets.items():
        if other != budget:
            raise UserError(f"{first} and {method} do not have the same rates and seeds")
    untuned = untuned_rate(grid, jobs[0])
    if untuned not in {rate for rate, _ in budget}:
        raise UserError(
            f"[axes] {RATE} should hold {value_text(untuned)}, the rate of these settings when "
            "nothing is tuned, or set another in [settings]"
        )
    return jobs


def untuned_rate(grid: Grid, job: Job) -> float:
    """The learning rate that a job has without the axis."""
    part = next(part for part in parts_of(grid) if job.adapter in part.adapters)
    return settings_of(part, job.model, job.adapter, job.seed, {}).train.learning_rate


def second_jobs(grid: Grid, folder: Path) -> list[Job]:
    """The tuned runs again, with the loss over the prompt (or, if the grid has that, without)."""
    jobs = []
    for job in (one for of in by_method(first_jobs(grid, folder)).tuned().values() for one in of):
        train = job.settings.train
        weight = 0.0 if train.prompt_weight else 1.0
        settings = replace(job.settings, train=replace(train, prompt_weight=weight))
        place = job.folder.with_name(f"{job.folder.name}-{short(WEIGHT)}={weight:g}")
        check_same(place, settings, job.adapter)
        values = job.values | {WEIGHT: weight}
        jobs.append(replace(job, settings=settings, folder=place, values=values))
    return jobs


def methods_of(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Method -> its jobs; a method is the adapter and the values of all axes but the rate."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        others = [
            f"{short(path)} {value_text(value)}"
            for path, value in job.values.items()
            if path not in (RATE, WEIGHT)
        ]
        found.setdefault(", ".join([job.adapter, *others]), []).append(job)
    return found


def by_method(jobs: Sequence[Job]) -> Trials:
    """Trials of the first jobs."""
    found: dict[str, dict[float, list[Job]]] = {}
    for method, of in methods_of(jobs).items():
        for job in of:
            found.setdefault(method, {}).setdefault(job.values[RATE], []).append(job)
    return Trials(found, {})
