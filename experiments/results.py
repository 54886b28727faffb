"""Results: result.json as typed values, of a run or an evaluation, whoever wrote it; as text."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, TypeVar

from eval.score import Score, score_table
from experiments.comparable import Conditions, beside_published
from files.errors import UserError
from files.reading import read_json
from files.typed import Range, from_table

FILE = "result.json"
Count = Annotated[int, Range(0)]
T = TypeVar("T")


@dataclass(frozen=True)
class PublishedRow:
    """A published row of the same model, and what it differs in."""

    row: str
    figures: dict[str, float]
    comparable: bool
    differs: str = ""
    sets: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is read of a result.json; an evaluation has no cost."""

    model: str
    data: str
    adapter: str | None = None  # the preset of a run
    seed: int | None = None  # of a run
    quantize: str = ""
    held_out_loss: dict = field(default_factory=dict)
    published: tuple[PublishedRow, ...] = ()
    strict: dict[str, Score] = field(default_factory=dict)  # by test set
    paper: dict[str, Score] = field(default_factory=dict)
    status: Count = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    validation: dict = field(default_factory=dict)
    steps: Count = 0
    seconds: Count = 0
    trainable_parameters: Count = 0
    peak_memory_bytes: Count = 0

    def check(self) -> None:
        figures = [*self.held_out_loss.values(), self.validation.get("best_loss", 0.0)]
        if not all(value is None or type(value) in (int, float) for value in figures):
            raise UserError("a loss is no number")


OF_RUNS = ("steps", "seconds", "trainable_parameters")


def read_result(folder: Path, is_run: bool | None = None) -> Result:
    """The result.json in a folder; is_run: it has to be that of a run, of an evaluation; None: of
    either. Raises UserError, naming the file, where it has another form."""
    file = folder / FILE
    facts = read_json(file)
    if is_run is None:
        is_run = "after" in facts
    scores = "after" if is_run else "scores"
    for key in ("model", "data", scores, *(OF_RUNS if is_run else ())):
        if key not in facts:
            raise UserError(f"{file} has no {key}")
    try:
        published = facts.get("published", [])
        if not isinstance(published, list) or not isinstance(facts[scores], dict):
            raise UserError(f"published should be a list, and {scores} a table of test sets")
        table = {key: value for key, value in facts.items() if key not in ("strict", "paper")}
        table["published"] = []
        result = known(Result, table, FILE)
        rows = tuple(known(PublishedRow, row, "published") for row in published)
        strict = {name: known(Score, of, name) for name, of in facts[scores].items()}
        paper = {
            name: known(Score, of.get("paper_reader"), f"{name}: paper_reader")
            for name, of in facts[scores].items()
        }
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix(f'{FILE}: '):.300}") from None
    return replace(result, published=rows, strict=strict, paper=paper)


def known(cls: type[T], table: object, where: str) -> T:
    """The dataclass from those values of a table that it has fields for. Raises UserError."""
    if not isinstance(table, dict):
        raise UserError(f"{where} should be a table, not {table!r:.100}")
    names = [one.name for one in fields(cls)]
    return from_table(cls, {key: table[key] for key in names if key in table}, where, "key")


def score_lines(
    before: list[dict], after: list[dict], title: str, before_title: str, ours: Conditions
) -> list[str]:
    """The table of scores, notes on answers that ran out of tokens or positions, and our figures
    beside the published ones."""
    lines = score_table(before, after, title, before_title, ours.trained_on).to_text()
    if cut := sum(prediction.get("cut", False) for prediction in after):
        lines.append(
            f"{cut} of {len(after)} answers ran out of tokens (eval.max_new_tokens) and were read "
            "as far as they went"
        )
    if too_long := sum(prediction.get("too_long", False) for prediction in after):
        lines.append(
            f"{too_long} of {len(after)} prompts are longer than the model's positions and count "
            "as wrong"
        )
    tables, notes = beside_published(ours, after)
    published = [line for table in tables for line in [*table.to_text(), ""]] + notes
    return [*lines, *([""] if published else []), *published]


def loss_text(loss: object) -> str:
    """The held_out_loss of a result.json: "3.0000 before, 2.0000 after (rows: 3)", in nats per
    token, or the one figure of an evaluation; "" where there is none."""
    figures = loss if isinstance(loss, dict) else {}
    names = {"before": " before", "after": " after", "loss": ""}
    texts = [
        f"{figures[key]:.4f}{name}"
        for key, name in names.items()
        if isinstance(figures.get(key), float)
    ]
    rows = f" (rows: {figures['rows']:,})" if isinstance(figures.get("rows"), int) else ""
    return ", ".join(texts) + rows * bool(texts)
