"""The main job: measure the base, train an adapter on it, measure again, write everything down."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from adapters import save_adapter, save_adapters, use
from adapters.attach import adapter_names
from adapters.in_use import rates
from eval.journal import remove_journals
from eval.predict import are_to, predict
from eval.score import mark_leaks, read_predictions, scores, write_predictions
from experiments.comparable import conditions_of
from experiments.curves import read_log
from experiments.facts import announce, facts_of, run_section
from experiments.folders import check_whole, write_json
from experiments.measured import measure_loss
from experiments.prepare import FREE_OF_TRAIN, Prepared, prepare
from experiments.report import validation_text, write_report
from experiments.tracker import TRACKERS
from experiments.verdict import NO_VERDICT, Verdict, verdict
from files.errors import UserError
from files.writing import JsonLines, held, write_text
from train.loop import train
from train.parallel import SINGLE, Processes
from train.settings import Settings, to_toml
from train.settings import settings as make_settings

# what may change when a run is resumed: the result does by rounding and dropout only
FREE = tuple(f"train.{key}" for key in FREE_OF_TRAIN)
FREE += ("eval.compile", "layers_per_device", "threads", "shard")
TEACHERS = "predictions-teacher.jsonl"


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    before: list[dict]  # predictions of the base, or of the adapter that is trained further
    after: list[dict]  # predictions with the trained adapter
    signal: int = 0  # that stopped the run, or 0
    loss: dict = field(default_factory=dict)  # {rows, before, after}: nats/token on held-out rows
    verdict: Verdict = NO_VERDICT  # what went wrong


def run(
    settings: Settings, folder: Path, resume: bool = False, processes: Processes = SINGLE
) -> Result:
    """Measure, train and measure again, in `folder`, which no other process can use meanwhile.

    Writes run.toml, log.jsonl, adapter/, predictions, result.json, report.html and checkpoints.
    With `resume` training continues from the last checkpoint there. Of several `processes` rank 0
    writes. A SIGINT or SIGTERM saves a checkpoint and returns with `signal` set.
    Raises UserError for whatever the user can correct.
    """
    if not resume and (folder / "result.json").exists():
        raise UserError(f"{folder} holds a finished run: give another folder")
    with held(folder) if processes.is_writer else nullcontext():
        return run_in(settings, folder, resume, processes)


def run_in(settings: Settings, folder: Path, resume: bool, processes: Processes) -> Result:
    began = time.time()
    job = prepare(settings, processes)
    s, model, pad_id = job.settings, job.model, job.tokenizer.pad_id or 0
    if processes.is_writer:
        write_text(folder / "run.toml", to_toml(s))
    announce(job, settings.template)
    tracker = TRACKERS[s.train.tracker if processes.is_writer else ""](folder, s.to_dict())
    if processes.is_writer:
        write_json(folder / "leakage.json", {n: leak.table() for n, leak in job.leaks.items()})

    title, active = ("before", job.active) if job.start else ("base", [])
    before = []
    if s.eval.before and job.tests:
        before = measure(job, title, folder / f"predictions-{title}.jsonl", active, processes)
        accuracies = (f"{n} {100 * score.accuracy:.1f}%" for n, score in scores(before).items())
        print("before: " + "   ".join(accuracies))
    if job.teacher:
        measure(job, "teacher", folder / TEACHERS, [job.teacher.name], processes)
    unseen, loss = job.share.examples or (job.held_out if job.teacher else []), {}
    what = "KL to the teacher" if job.teacher else "held-out loss"
    if unseen:
        use(model, active)
        figure = measure_loss(model, unseen, s, pad_id, processes, job.teacher)
        loss = {"rows": len(unseen), "before": figure}
        print(f"before: {what} per token {figure:.4f} (rows: {len(unseen):,})")

    use(model, job.active, train=["default"])
    with JsonLines(folder / "log.jsonl") if processes.is_writer else nullcontext() as log:
        outcome = train(
            model,
            job.trained,
            job.examples,
            s.train,
            seed=s.seed,
            pad_id=pad_id,
            folder=folder,
            resume=resume,
            log=lambda entry: (log.write(entry), tracker.write(entry)) if log else None,
            rates=rates(model),
            held_out=job.held_out,
            fingerprints=job.fingerprints,
            processes=processes,
            teacher=job.teacher,
        )
    if outcome.signal:
        tracker.finish(outcome.step, {})
        return Result(before, [], outcome.signal)
    if processes.is_writer:
        several = len(adapter_names(model)) > 1 and not job.teacher
        save = save_adapters if several else save_adapter
        # A run that was killed after its last step has written it before.
        save(model, folder / "adapter", run=run_section(job, outcome), overwrite=True)
    kept = validation_text(outcome.adapter_step, outcome.validation)
    print(f"adapter saved in {folder / 'adapter'}{kept}")

    after = []
    if job.tests:
        after = measure(job, "with adapter", folder / "predictions.jsonl", job.active, processes)
    if unseen:
        use(model, job.active)
        loss["after"] = measure_loss(model, unseen, s, pad_id, processes, job.teacher)
    measured = scores(before), scores(after), loss
    judgement = processes.from_writer(
        lambda: verdict(
            read_log(folder / "log.jsonl"), outcome.adapter_step, *measured, steps=outcome.step
        )
    )
    result = Result(before, after, loss=loss, verdict=judgement)
    if processes.is_writer:
        facts = facts_of(job, outcome, result, processes.world, round(time.time() - began))
        write_report(folder, model, job.config, to_toml(s), facts, before, after, conditions_of(s))
        accuracies = {name: score.accuracy for name, score in scores(after).items()}
        tracker.finish(outcome.step, accuracies)
        write_json(folder / "result.json", facts)  # last: its presence marks a complete run
    return result


def measure(
    job: Prepared, title: str, file: Path, active: list, processes: Processes
) -> list[dict]:
    """The predictions with these adapters on, kept in `file`.

    Predictions before training that an interrupted run had are read and not made again.
    """
    use(job.model, active)
    journal = file.with_name(f"{file.name}.part")
    if file.is_file() and title != "with adapter":
        kept = read_predictions(file)
        if are_to(kept, job.tests, job.settings.eval):
            if processes.is_writer:
                remove_journals(journal)  # left by a kill between the two
            return kept
        if processes.is_writer:
            print(f"{file} does not hold the answers to these problems: they are made again")
    predictions = predict(
        job.model,
        job.tokenizer,
        job.tests,
        template=job.template,
        decoding=job.settings.eval,
        title=title,
        reads=job.data.reads,
        journal=journal,
        processes=processes,
    )
    for leaks in (*job.earlier, job.leaks):
        mark_leaks(predictions, leaks)
    if processes.is_writer:
        write_predictions(file, predictions)
        remove_journals(journal)
    return predictions


def resume_settings(folder: Path, options: dict | None = None, sets: list[str] = ()) -> Settings:
    """The settings of an interrupted run, with changes to those of FREE.

    Raises UserError for another change, where there is no run, and where it is complete.
    """
    for text in sets:
        if text.partition("=")[0].strip() not in FREE:
            raise UserError(
                f"--set {text}: a resumed run keeps its settings, but for {', '.join(FREE)}"
            )
    if not (folder / "run.toml").is_file():
        raise UserError(f"{folder} holds no run.toml: there is no run to resume")
    if (folder / "result.json").is_file():
        raise UserError(f"{folder} is complete; see {folder / 'report.html'}")
    check_whole(folder / "run.toml")
    return make_settings(config=str(folder / "run.toml"), options=options, sets=sets)
