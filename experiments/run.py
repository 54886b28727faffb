"""The main job: measure the base, train an adapter on it, measure again, write everything down."""

import hashlib
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from adapters import attach, load_adapter, named_parameters, save_adapter, save_adapters, use
from adapters.attach import adapter_names, adapters_named, in_order, rates
from adapters.config import AdapterConfig, resolve
from data.batches import Example
from data.leakage import seen_sets
from data.prompts import AUTO, NAMES
from data.sources import Data
from eval.journal import remove_journals
from eval.room import positions_of, room_lines
from eval.score import mark_leaks, predict, read_predictions, scores, tables, write_predictions
from experiments.base import check_base, choose_devices, load_base, toy_lines
from experiments.continued import Start, load_start, template_of
from experiments.held_out import hold_out_share, measure_loss
from experiments.history import held_out_seen, history_lines, seen_in_training, short
from experiments.labels import check_labels, reading_lines
from experiments.report import read_log, validation_text, write_report
from experiments.rows import (
    check_earlier,
    check_leakage,
    encode_rows,
    hold_out,
    leak_lines,
    load_rows,
    validation_lines,
)
from experiments.tracker import TRACKERS, check_tracker
from experiments.verdict import NO_VERDICT, Verdict, verdict
from files.errors import UserError, unknown
from files.writing import JsonLines, held, write_text
from model.quantize import quantized_weights
from train.checkpoint import checkpoints
from train.loop import train
from train.parallel import SINGLE, Processes
from train.settings import Settings, settings, to_toml

FREE = (  # settings that may change when a run is resumed: the result does only by rounding, and dropout's draws
    "train.micro_batch_size",
    "train.checkpointing",
    "train.offload",
    "train.keep",
    "train.tracker",
    "layers_per_device",
    "threads",
    "shard",
)


@dataclass(frozen=True)
class Result:
    """What a run came to: the predictions before training (of the base, or of the adapter that was
    trained further) and with the adapter, the signal that stopped it or 0, {rows, before, after} of
    the loss per token on held-out rows, and what went wrong."""

    before: list[dict]
    after: list[dict]
    signal: int = 0
    loss: dict = field(default_factory=dict)
    preset: str = ""  # name of the adapter in presets.toml, where it is known
    verdict: Verdict = NO_VERDICT


def adapter_of(s: Settings) -> AdapterConfig:
    return resolve(None, **{key: value for key, value in s.adapter.items() if key != "preset"})


def first_items(tests: dict[str, list[dict]], items: int) -> dict[str, list[dict]]:
    return {name: rows[:items] if items else rows for name, rows in tests.items()}


def run(s: Settings, folder: Path, resume: bool = False, processes: Processes = SINGLE) -> Result:
    """`run_in` the folder, in which no other run can be at the same time."""
    with held(folder) if processes.is_writer else nullcontext():
        return run_in(s, folder, resume, processes)


def run_in(s: Settings, folder: Path, resume: bool, processes: Processes) -> Result:
    """One experiment in `folder`: run.toml, log.jsonl, adapter/, predictions, result.json, report.html, checkpoint-STEP.pt.

    Of several `processes` rank 0 writes. Raises UserError for anything the user can put right.
    Interrupted by a signal, it saves a checkpoint and returns with `signal` set.
    """
    began = time.time()
    tokenizer = check_base(s)
    check_tracker(s.train.tracker)
    if s.template not in (*NAMES, AUTO) and not s.continue_from:
        raise unknown("prompt template", s.template, (*NAMES, AUTO))
    data, kept = load_rows(s)
    tests = first_items(data.tests, s.eval.items)
    check_labels(tests, data.reads)
    leaks = check_leakage(data, tests, s.train_on_test)
    devices = choose_devices(s, processes)
    if len(devices) > 1 and not s.layers_per_device:
        from experiments.layout import layers_for  # what it counts with takes a while to import

        s = replace(s, layers_per_device=layers_for(s, devices))
    model = load_base(s, processes)
    runs = {name: load_adapter(model, where, name) for name, where in s.load.items()}
    loaded = adapters_fingerprint(model, list(s.load))
    torch.manual_seed(s.seed)
    start = load_start(model, s, tokenizer) if s.continue_from else None
    config = start.config if start else attach(model, adapter_of(s))
    form = template_of(s, tokenizer, start, data.is_own)
    runs |= start.loaded if start else {}
    history = start.history if start else []
    trained_on = [*runs.values(), *history]
    earlier, earlier_lines = seen_in_training(trained_on, tests, s.data_dir)
    more = held_out_seen(trained_on, data.held_out, s.data_dir)
    earlier_lines = list(dict.fromkeys([*earlier_lines, *more]))
    check_earlier(seen_in_training(history, tests, s.data_dir)[0], s.train_on_test)
    preset = start.preset if start else s.adapter.get("preset", "")
    on = in_order(
        model
    )  # what was loaded, in this order, and the new one; or a fusion in place of its members
    use(model, on, train=["default"])
    trained = named_parameters(model)
    encoded = encode_rows(tokenizer, data.train, data.is_text, form, s)
    check_positions(model, encoded.examples)
    share = hold_out_share(tokenizer, data, form, s, encoded.examples)
    unseen = share.examples
    examples, held_out, twins = hold_out(share.training, s.train.validation_rows, s.seed)
    here = ",".join(str(stage.device) for stage in model.stages) or str(model.device)
    chosen_by = (
        "the tokenizer's own, as the data is yours" if s.template == AUTO and form.chat else ""
    )
    s = replace(
        s,
        template=form.name,
        device=here if processes.world == 1 else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        layers_per_device=[stage.end - stage.first for stage in model.stages],
    )
    prints = {
        "base model": model.fingerprint,
        "loaded adapters": loaded,
        "data": data.fingerprint,
        "settings": fingerprint(s),
    }
    if start:
        prints["adapter to continue"] = adapters_fingerprint(model, adapter_names(model))
    processes.agree(prints | {"tests": hashlib.sha256(json.dumps(tests).encode()).hexdigest()})
    if processes.is_writer:
        write_text(folder / "run.toml", to_toml(s))
    lines = [*kept, *reading_lines(tests, data.reads), *encoded.lines, *share.lines]
    lines += [*validation_lines(len(held_out), twins, s), *leak_lines(leaks), *earlier_lines]
    lines += room_lines(model, tokenizer, tests, form, s.eval)
    say(model, config, trained, s, data, chosen_by, lines, start)
    tracker = TRACKERS[s.train.tracker if processes.is_writer else ""](folder, asdict(s))
    if processes.is_writer:
        write_text(
            folder / "leakage.json",
            json.dumps({name: leak.table() for name, leak in leaks.items()}, indent=2) + "\n",
        )

    def measure(title: str, file: str, names: list, kept: bool = False) -> list[dict]:
        """The predictions with these adapters on, kept in a file of the run; what an interrupted run had is not made again."""
        use(model, names)
        part = folder / f"{file}.part"
        if kept and (folder / file).is_file():
            if processes.is_writer:
                remove_journals(part)  # a kill may have come just before
            return read_predictions(folder / file)
        predictions = predict(
            model,
            tokenizer,
            tests,
            template=form,
            how=s.eval,
            title=title,
            reads=data.reads,
            journal=part,
            processes=processes,
        )
        for one in (*earlier, leaks):
            mark_leaks(predictions, one)
        if processes.is_writer:
            write_predictions(folder / file, predictions)
            remove_journals(part)
        return predictions

    first, at_first = ("before", on) if start else ("base", [])
    base_predictions = (
        measure(first, f"predictions-{first}.jsonl", at_first, kept=True)
        if s.eval.before and tests
        else []
    )
    before = scores(base_predictions)
    if before:
        print(
            "before: "
            + "   ".join(f"{name} {100 * score.accuracy:.1f} %" for name, score in before.items())
        )
    pad_id = tokenizer.pad_id or 0
    loss = {}
    if unseen:
        use(model, at_first)
        loss = {"rows": len(unseen), "before": measure_loss(model, unseen, s, pad_id, processes)}
        print(f"before: held-out loss per token {loss['before']:.4f} (rows: {len(unseen):,})")
    use(model, on, train=["default"])

    with JsonLines(folder / "log.jsonl") if processes.is_writer else nullcontext() as log:
        outcome = train(
            model,
            trained,
            examples,
            s.train,
            seed=s.seed,
            pad_id=pad_id,
            folder=folder,
            resume=resume,
            log=lambda entry: (log.write(entry), tracker.write(entry)) if log else None,
            rates=rates(model),
            held_out=held_out,
            fingerprints=prints,
            processes=processes,
        )
    if outcome.signal:
        tracker.finish(outcome.step, {})
        return Result(base_predictions, [], outcome.signal)

    save = save_adapters if len(adapter_names(model)) > 1 else save_adapter
    prompt = {} if data.is_text else {"template": form.name, "template_text": form.table()}
    about = {
        "model": s.model,
        "data": s.data,
        **prompt,
        "seed": s.seed,
        "adapter": preset,
        "columns": s.columns,
        "test_share": 0.0 if s.tests else s.test_share,
        "only_right": s.only_right,
        "data_fingerprint": data.fingerprint,
        "quantize": model.quantize,
        "revision": s.revision,
        "steps": outcome.adapter_step,
    }
    about |= {"history": start.history} if start else {}
    about |= {"loaded": {name: short(run) for name, run in runs.items()}} if runs else {}
    if processes.is_writer:
        save(
            model, folder / "adapter", run=about, overwrite=True
        )  # a run that was killed behind its last step has written it before
    print(
        f"adapter saved in {folder / 'adapter'}{validation_text(outcome.adapter_step, outcome.validation)}"
    )
    predictions = measure("with adapter", "predictions.jsonl", on) if tests else []
    if unseen:
        use(model, on)
        loss["after"] = measure_loss(model, unseen, s, pad_id, processes)
    facts = {
        "model": s.model,
        "quantize": model.quantize,
        "adapter": preset,
        "continued_from": s.continue_from,
        "history": start.history if start else [],
        "data": s.data,
        "seed": s.seed,
        "processes": processes.world,
        "adapter_step": outcome.adapter_step,
        "validation": outcome.validation,
        "steps": outcome.step,
        "skipped_steps": outcome.skipped,
        "seconds": round(time.time() - began),
        "rows_cut_off": encoded.cut,
        "rows_left_out": len(data.left_out) + encoded.refused + share.refused,
        "held_out_loss": loss,
        "trainable_parameters": count(trained),
        "parameters": count_base(model),
        "trained_on_test": list(
            dict.fromkeys(name for one in (leaks, *earlier) for name in seen_sets(one))
        ),
        "decoding": s.eval.decoding,
        "before": tables(base_predictions),
        "after": tables(predictions),
    }
    found = processes.from_writer(
        lambda: verdict(
            read_log(folder / "log.jsonl"), outcome.adapter_step, before, scores(predictions), loss
        )
    )
    facts |= {"problems": found.problems, "notes": found.notes, "status": found.status}
    if not processes.is_writer:
        return Result(base_predictions, predictions, loss=loss, preset=preset, verdict=found)
    write_report(folder, model, config, to_toml(s), facts, base_predictions, predictions)
    tracker.finish(
        outcome.step, {name: score.accuracy for name, score in scores(predictions).items()}
    )
    write_text(
        folder / "result.json", json.dumps(facts, indent=2) + "\n"
    )  # last: it says that the run is complete
    return Result(base_predictions, predictions, loss=loss, preset=preset, verdict=found)


def fingerprint(s: Settings) -> str:
    """Everything that decides the course of training: a checkpoint is only resumed under the same."""
    train = replace(
        s.train, keep=1, tracker="", checkpointing="none", offload=False, micro_batch_size=1
    )
    here = {
        "device": "",
        "layers_per_device": [],
        "shard": False,
        "threads": 0,
        "data_dir": "",
        "load": dict.fromkeys(s.load, ""),
        "continue_from": "a folder" if s.continue_from else "",
    }  # where it runs
    return to_toml(
        replace(s, **here, tests=[], train_on_test=False, eval=type(s.eval)(), train=train)
    )


def adapters_fingerprint(model: nn.Module, names: list[str]) -> str:
    """A hash of the weights of these adapters."""
    digest = hashlib.sha256()
    for name in names:
        for path, adapter in adapters_named(model, name).items():
            for leaf, tensor in adapter.state_dict().items():
                digest.update(f"{path} {leaf}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def count(named: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in named.values())


def count_base(model: nn.Module) -> int:
    """Parameters of the model without its adapters."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".adapters." not in name
    ) + quantized_weights(model)


def check_positions(model: nn.Module, examples: list[Example]) -> None:
    """Raise UserError for a row to train on that the model has no positions for."""
    longest, positions = max(map(len, examples)), positions_of(model)
    if positions is not None and longest > positions:
        raise UserError(
            f"a row to train on has {longest} tokens, and the model has positions for {positions}: set train.cutoff={positions}"
        )


def say(
    model: nn.Module,
    config: AdapterConfig,
    trained: dict,
    s: Settings,
    data: Data,
    chosen_by: str,
    more: list[str],
    start: Start | None = None,
) -> None:
    """The lines that stand above the progress bars."""
    base = count_base(model)
    kind = model.config.model_type
    print(
        f"model    {s.model}: {kind}, {base:,} parameters, frozen, {s.dtype}{f' and {model.quantize}' * bool(model.quantize)} on {s.device}"
    )
    for line in toy_lines(s.model):
        print(f"         {line}")
    for stage in model.stages:
        print(f"         layers {stage.first} to {stage.end - 1} on {stage.device}")
    for name, where in s.load.items():
        print(f"loaded   {name}, frozen, from {where}")
    name = (start.preset if start else s.adapter.get("preset")) or config.kind
    print(
        f"adapter  {name} at {config.place()}: {count(trained):,} parameters, "
        f"{100 * count(trained) / base:.2f} % of the model"
    )
    if start:
        print(f"         trained further from {s.continue_from}")
        for line in [
            *(f"trained before on {one}" for one in history_lines(start.history)),
            *start.lines,
        ]:
            print(f"         {line}")
    tests = ", ".join(f"{name} ({len(rows)})" for name, rows in data.tests.items())
    rows = (
        "plain text" if data.is_text else f"{len(data.train):,} row{'s' * (len(data.train) != 1)}"
    )
    print(f"data     {data.name}: {rows} to train on, tests {tests or 'none'}")
    if not data.is_text:
        print(
            f"prompt   {s.template}{f' ({chosen_by})' * bool(chosen_by)}; answers {s.eval.decoding}"
        )
    for line in more:
        print(f"         {line}")


def resume_settings(folder: Path, options: dict | None = None, sets: list[str] = ()) -> Settings:
    """The settings of an interrupted run, those of FREE changed. Raises UserError for other changes, when there is no run, or when it is complete."""
    for text in sets:
        if text.partition("=")[0].strip() not in FREE:
            raise UserError(
                f"--set {text}: a resumed run keeps its settings, but for {', '.join(FREE)}"
            )
    if not (folder / "run.toml").is_file():
        raise UserError(f"{folder} holds no run.toml: there is no run to resume")
    if (folder / "result.json").is_file():
        raise UserError(f"{folder} is complete; see {folder / 'report.html'}")
    return settings(config=str(folder / "run.toml"), options=options, sets=sets)


def can_resume(folder: Path) -> bool:
    return bool(checkpoints(folder))
