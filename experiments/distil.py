"""distil: another method learns what a trained adapter gives, so that it can be merged and served.

A run whose loss is KL(teacher || student) on the rows that the adapter was trained on
(train/teacher.py); then what that lost and what it gained.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters import load_adapter
from adapters.in_use import parameters
from adapters.merge import check
from eval.score import percent_cell, scores
from eval.table import Table
from experiments.base import load_base
from experiments.compare import ALL, Pair, difference_cell, p_text, pairs_of
from experiments.exporting import takers
from experiments.folders import write_json
from experiments.loading import settings_of_run, settings_to_measure
from experiments.run import TEACHERS, run
from experiments.same_problems import read_run, right_shares
from experiments.verdict import together
from files.errors import UserError
from files.reading import read_json
from files.writing import refuse_links
from train.checkpoint import checkpoints
from train.settings import Settings
from train.settings import settings as make_settings

ROWS = 64  # held out to measure the divergence on, where the run held none out
SUMMARY = "distilled.json"


@dataclass(frozen=True)
class Learner:
    """An adapter, as others can use it."""

    parameters: int
    engines: list[str]  # that take it as an adapter
    unmergeable: str  # why it cannot be merged; "": it can


@dataclass(frozen=True)
class Distilled:
    """What was lost, and what was gained."""

    tests: list[Pair]  # teacher against student, on each test set and on all problems
    intervals: dict[str, list[tuple[float, float]]]  # test set -> 95% of teacher's, student's
    divergence: dict  # {rows, before, after}: KL(teacher || .), nats per token
    teacher: Learner
    student: Learner
    signal: int = 0  # that stopped the run, or 0
    status: int = 0  # 1: the student has nothing to show

    def lines(self) -> list[str]:
        """What to print."""
        lines = table_of(self.tests, self.intervals).to_text() if self.tests else []
        if d := self.divergence:
            lines.append(
                f"KL(teacher || student) per token, {d['rows']} rows held out: {d['after']:.4f} "
                f"nats (of the base: {d['before']:.4f})"
            )
        pairs = (
            ("parameters", *(f"{one.parameters:,}" for one in (self.teacher, self.student))),
            ("can be merged", *("no" if one.unmergeable else "yes" for one in self.learners)),
            ("taken by", *(", ".join(one.engines) or "none" for one in self.learners)),
        )
        return [*lines, *(f"{name:13}  {was} -> {now}" for name, was, now in pairs)]

    @property
    def learners(self) -> tuple[Learner, Learner]:
        return self.teacher, self.student


def settings_to_distil(
    source: str | Path,
    to: str = "lora",
    r: int | None = None,
    sites: Sequence[str] | None = None,
    options: dict | None = None,
    sets: Sequence[str] = (),
) -> Settings:
    """The settings of a run in which a new adapter learns from that of the run in `source`.

    to: a preset; r, sites: its rank and places, in place of the preset's. options, sets: over the
    run's own settings. Raises UserError.
    """
    if not (Path(source) / "run.toml").is_file():
        raise UserError(f"{source} holds no run.toml: give the folder of a run")
    options = options or {}
    table = settings_of_run(Path(source), options, sets)
    table["teacher"] = table.pop("continue_from")
    table["train"] = {"validation_rows": 0} | table.get("train", {})
    table["train"]["validation_rows"] = table["train"]["validation_rows"] or ROWS
    adapter = {"preset": to} | ({"r": r} if r else {}) | ({"sites": list(sites)} if sites else {})
    return make_settings(options=options | {"adapter": adapter}, sets=list(sets), below=table)


def distil(settings: Settings, folder: Path, resume: bool = False) -> Distilled:
    """Train the student in `folder`, as `run` does; compare it with its teacher.

    Writes distilled.json beside the files of a run. A run that is complete is not trained again.
    With `signal` set, the run was stopped and can be resumed. Raises UserError.
    """
    if not settings.teacher:
        raise UserError(f"the run in {folder} has no teacher: it was not begun by distil")
    refuse_links(folder)
    signal = status = 0
    if not (resume and (folder / "result.json").is_file()):
        copies = keep_predictions(settings, folder)
        try:
            result = run(settings, folder, bool(resume and checkpoints(folder)))
        finally:
            if not (folder / "run.toml").is_file():  # the run was refused
                for copy in copies:
                    copy.unlink()
        signal, status = result.signal, result.verdict.status
    if signal:
        nobody = Learner(0, [], "")
        return Distilled([], {}, {}, nobody, nobody, signal)
    tests, intervals = comparison(folder)
    done = Distilled(
        tests,
        intervals,
        read_json(folder / "result.json").get("divergence", {}),
        *learners(settings, [Path(settings.teacher), folder / "adapter"]),
        status=status,
    )
    write_json(folder / SUMMARY, asdict(done))
    return done


def keep_predictions(settings: Settings, folder: Path) -> list[Path]:
    """Copy what the teacher's run answered, and the base there, if the same model would answer the
    same; `run` reads them where they are to the same problems. Returns the copies."""
    source = Path(settings.teacher).parent
    of_run, _ = settings_to_measure(str(source))
    same = ("model", "revision", "dtype", "device", "quantize", "template", "eval")
    if any(getattr(settings, key) != getattr(of_run, key) for key in same):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    base, copies = "predictions-base.jsonl", []
    for name, copy in (("predictions.jsonl", folder / TEACHERS), (base, folder / base)):
        if (source / name).is_file() and not copy.exists():
            copies.append(shutil.copyfile(source / name, copy))
    return copies


def comparison(folder: Path) -> tuple[list[Pair], dict[str, list[tuple[float, float]]]]:
    """(teacher against student on each test set and on all, their intervals); empty without
    tests."""
    if not (folder / TEACHERS).is_file():
        return [], {}
    runs = [
        read_run(folder / name, who)
        for name, who in ((TEACHERS, "teacher"), ("predictions.jsonl", "student"))
    ]
    pairs = pairs_of({one.name: right_shares(one.predictions, "strict") for one in runs})
    found = [scores(one.predictions) for one in runs]
    found = [of | {ALL: together(list(of.values()))} for of in found]
    intervals = {name: [of[name].interval for of in found] for name in found[0]}
    return sorted(pairs, key=lambda pair: pair.tests == ALL), intervals


def table_of(tests: list[Pair], intervals: dict[str, list[tuple[float, float]]]) -> Table:
    rows = []
    for pair in tests:
        both = zip(pair.accuracy, intervals[pair.tests], strict=True)
        shares = [percent_cell(share, interval) for share, interval in both]
        change = difference_cell(pair.difference)
        rows.append([pair.tests, *shares, change, p_text(pair.p_holm)])
    return Table(("test set", "teacher", "student", "teacher - student, points", "p (Holm)"), rows)


def learners(settings: Settings, folders: Sequence[Path]) -> list[Learner]:
    """What the adapters of these folders are to others. Raises UserError."""
    found = []
    for folder in folders:
        model = load_base(settings)
        load_adapter(model, folder)
        why = ""
        try:
            check(model)
        except UserError as error:
            why = str(error)
        count = sum(parameter.numel() for parameter in parameters(model))
        found.append(Learner(count, takers(model), why))
    return found
