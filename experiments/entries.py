"""The results of a grid's jobs, as result.json and log.jsonl have them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.distribution import by_distribution
from eval.score import Score
from experiments.axes import Values, value_text
from experiments.curves import first_and_last
from experiments.jobs import Job
from experiments.published import Figures
from experiments.results import PublishedRow, read_result
from files.errors import UserError


@dataclass(frozen=True)
class Entry:
    """The result of one job."""

    model: str
    adapter: str
    seed: int
    strict: dict[str, Score]  # by data set
    paper: dict[str, Score]
    seconds: int = 0
    parameters: int = 0  # trained
    losses: tuple[float, float] | None = None  # mean of the first and last steps, at most ten each
    quantize: str = ""  # how the base was stored
    held_out: dict = field(default_factory=dict)  # {before, after}, or {loss} of a base: nats/token
    wrong: tuple[str, ...] = ()  # problems that left nothing to show (experiments/verdict.py)
    published: tuple[PublishedRow, ...] = ()  # rows of the model
    values: Values = field(default_factory=dict)  # of the grid's axes
    data: str = ""  # that was trained on

    @property
    def same(self) -> tuple:
        """What runs that differ in their seed alone have in common."""
        texts = {path: value_text(value) for path, value in self.values.items()}
        return self.model, self.adapter, tuple(texts.items())

    def readings(self) -> dict[str, dict[str, Score]]:
        """Reader -> scores; only the strict one, empty, where there is no test set."""
        return {"strict": self.strict} | ({"paper": self.paper} if self.paper else {})

    def comparable(self) -> list[tuple[Figures, list[str]]]:
        """The figures of each published row that this result can be compared with, and the sets
        that they are of."""
        return [
            (
                row.figures | by_groups(row.figures, self.data),
                row.sets or [key for key in row.figures if key != "average"],
            )
            for row in self.published
            if row.comparable
        ]


def by_groups(figures: Figures, data: str) -> Figures:
    """The means of the sets in and out of the distribution of the training data."""
    groups = by_distribution(data, [name for name in figures if name != "average"])
    return {group: sum(figures[n] for n in names) / len(names) for group, names in groups.items()}


def entry(job: Job) -> Entry:
    """The Entry of a complete job. Raises UserError."""
    try:
        result = read_result(job.folder, is_run=bool(job.adapter))
        asked = {"model": job.model, "data": job.settings.data}
        asked |= {"adapter": job.adapter, "seed": job.seed}
        for key, value in asked.items():
            if (of := getattr(result, key)) not in (None, value):
                raise UserError(f"its result.json is of {key} {of!r:.100}")
        log = job.folder / "log.jsonl"
        return Entry(
            job.model,
            job.adapter,
            job.seed,
            result.strict,
            result.paper,
            seconds=result.seconds,
            parameters=result.trainable_parameters,
            losses=first_and_last(log, result.steps) if job.adapter else None,
            quantize=result.quantize,
            held_out=result.held_out_loss,
            wrong=tuple(result.problems) if result.status else (),
            published=result.published,
            values=job.values,
            data=result.data,
        )
    except (OSError, UserError) as error:
        wrong = f"{job.folder} is not a complete run ({error!s:.400})"
        raise UserError(f"{wrong}: remove it and start the table again") from None


def axes_of(entries: Sequence[Entry]) -> list[str]:
    """The axes of a grid, in its order."""
    return list(dict.fromkeys(path for e in entries for path in e.values))
