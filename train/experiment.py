"""The main job: measure the base, train an adapter on it, measure again, write everything down."""

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from adapters import attach, load_adapter, named_parameters, save_adapter, save_adapters, use
from adapters.attach import adapters_named, in_order, rates
from adapters.config import AdapterConfig, resolve
from data.batches import Example, encode_row
from data.prompts import prompt
from data.sources import Data, load_data
from eval.report import write_report
from eval.score import Score, check_labels, predict, scores, write_predictions
from model import load_model, load_tokenizer
from model.errors import UserError
from model.files import make_folder, write_text
from model.load import read_config
from model.registry import find
from model.tokenizer import Tokenizer
from train.loop import CHECKPOINT, train
from train.settings import Settings, settings, to_toml

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Result:
    """What a run came to: the scores without and with the adapter, and the signal that stopped it, or 0."""

    before: dict[str, Score]
    after: dict[str, Score]
    signal: int = 0


def fresh_folder(path: Path, numbered: bool) -> Path:
    """Where new results go: `path`, or `path`-2, -3 ... when numbered; never a folder that holds something. Who writes there makes it."""
    candidate, number = path, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        if not numbered:
            unfinished = (path / "run.toml").is_file() and not (path / "result.json").is_file()
            hint = f", or continue the run in it with: python run.py --resume {path}" if unfinished else ""
            raise UserError(f"{path} exists and is not {'empty' if path.is_dir() else 'a folder'}: give another --out{hint}")
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def choose_device(s: Settings) -> torch.device:
    """The device of a run. Raises UserError when it is not there."""
    name = s.device if s.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} cannot be used: torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def check_model(name: str) -> None:
    """Raise UserError for a misspelled model or a folder that holds none, before anything is downloaded or made."""
    found = find(name)
    if isinstance(found, Path):
        read_config(found)


def load_base(s: Settings) -> nn.Module:
    """The model of the settings, on their device, in their dtype. Raises UserError."""
    if s.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype {s.dtype!r} is not one of auto, {', '.join(DTYPES)}")
    if s.threads:
        torch.set_num_threads(s.threads)
    device = choose_device(s)
    model = load_model(s.model, dtype=DTYPES.get(s.dtype), device=device, revision=s.revision or None)
    if s.dtype == "auto" and model.dtype == torch.float16 and device.type == "cpu":
        model = model.to(torch.float32)  # float16 is for GPUs: on a CPU it is slow and needs loss scaling
        model.dtype = torch.float32
    return model


def load_words(s: Settings, model: nn.Module) -> Tokenizer:
    """The tokenizer of the settings. Raises UserError when it has ids the model's embedding has not."""
    tokenizer = load_tokenizer(s.model, s.revision or None)
    tokenizer.fit(model.config.vocab_size)
    return tokenizer


def adapter_of(s: Settings) -> AdapterConfig:
    return resolve(None, **{key: value for key, value in s.adapter.items() if key != "preset"})


def first_items(tests: dict[str, list[dict]], items: int) -> dict[str, list[dict]]:
    return {name: rows[:items] if items else rows for name, rows in tests.items()}


def run(s: Settings, folder: Path, resume: bool = False) -> Result:
    """One experiment in `folder`: run.toml, log.jsonl, adapter/, predictions, result.json, report.html, checkpoint.pt.

    Raises UserError for anything the user can put right. Interrupted by a signal, it saves a checkpoint and returns with `signal` set.
    """
    began = time.time()
    check_model(s.model)
    prompt(s.template, "")
    data = load_data(s.data, s.data_dir, s.seed)
    model = load_base(s)
    tokenizer = load_words(s, model)
    tests = first_items(data.tests, s.eval.items)
    check_labels(tests)
    for name, where in s.load.items():
        load_adapter(model, where, name)
    loaded = adapters_fingerprint(model, list(s.load))
    torch.manual_seed(s.seed)
    config = attach(model, adapter_of(s))
    on = in_order(model)  # what was loaded, in this order, and the new one; or a fusion in place of its members
    use(model, on, train=["default"])
    trained = named_parameters(model)
    examples, cut, empty = encode_rows(tokenizer, data, s)
    if not resume:
        make_folder(folder)
        s = replace(s, device=str(next(model.parameters()).device), dtype=str(model.dtype).removeprefix("torch."))
        write_text(folder / "run.toml", to_toml(s))
    say(model, config, trained, s, data, cut, empty)

    def measure(title: str, file: str, names: list) -> tuple[dict[str, Score], list[dict]]:
        use(model, names)
        predictions = predict(model, tokenizer, tests, template=s.template, batch_size=s.eval.batch_size,
                              max_new_tokens=s.eval.max_new_tokens, title=title)
        write_predictions(folder / file, predictions)
        return scores(predictions), predictions

    before, base_predictions = measure("base", "predictions-base.jsonl", []) if s.eval.before else ({}, [])
    if before:
        print("before: " + "   ".join(f"{name} {100 * score.accuracy:.1f} %" for name, score in before.items()))
    use(model, on, train=["default"])

    with Log(folder / "log.jsonl") as log:
        outcome = train(
            model, trained, examples, s.train, seed=s.seed, pad_id=tokenizer.pad_id or 0, folder=folder, resume=resume, log=log.write,
            rates=rates(model),
            fingerprints={"base model": model.fingerprint, "loaded adapters": loaded, "data": data.fingerprint, "settings": fingerprint(s)},
        )
    if outcome.signal:
        return Result(before, {}, outcome.signal)

    save = save_adapters if s.load else save_adapter
    about = {"model": s.model, "data": s.data, "template": s.template, "seed": s.seed}
    save(model, folder / "adapter", run=about, overwrite=True)  # a run that was killed behind its last step has written it before
    print(f"adapter saved in {folder / 'adapter'}")
    after, predictions = measure("with adapter", "predictions.jsonl", on)
    result = Result(before, after)
    facts = {
        "steps": outcome.step, "skipped_steps": outcome.skipped, "seconds": round(time.time() - began), "rows_cut_off": cut,
        "trainable_parameters": count(trained), "parameters": count_base(model),
        "before": {name: table(score) for name, score in before.items()}, "after": {name: table(score) for name, score in after.items()},
    }
    write_report(folder, model, config, to_toml(s), facts, before, after, base_predictions, predictions)
    write_text(folder / "result.json", json.dumps(facts, indent=2) + "\n")  # last: it says that the run is complete
    return result


class Log:
    """log.jsonl: a line a step, appended to; a line that a kill cut short is ended first."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            torn = self.path.is_file() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
            self.file = open(self.path, "a", encoding="utf-8")
            if torn:
                self.file.write("\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}") from None
        return self

    def write(self, entry: dict) -> None:
        try:
            print(json.dumps(entry), file=self.file, flush=True)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}") from None

    def __exit__(self, *exception) -> None:
        self.file.close()


def encode_rows(tokenizer, data: Data, s: Settings) -> tuple[list[Example], int, int]:
    """Training rows as Examples; how many were cut off at train.cutoff tokens; how many of these kept no token to learn and were left out."""
    encoded = [encode_row(tokenizer, row, s.template, s.train.cutoff, s.train.prompt_weight) for row in data.train]
    examples = [example for example, _ in encoded if any(example.weights[1:])]
    if not examples:
        raise UserError(f"no row of {data.name} keeps a token to learn within train.cutoff = {s.train.cutoff} tokens: raise it")
    return examples, sum(cut for _, cut in encoded), len(encoded) - len(examples)


def fingerprint(s: Settings) -> str:
    """Everything that decides the course of training: a checkpoint is only resumed under the same."""
    return to_toml(replace(s, device="", data_dir="", load=dict.fromkeys(s.load, ""), eval=type(s.eval)()))


def adapters_fingerprint(model: nn.Module, names: list[str]) -> str:
    """A hash of the weights of these adapters."""
    digest = hashlib.sha256()
    for name in names:
        for path, adapter in adapters_named(model, name).items():
            for leaf, tensor in adapter.state_dict().items():
                digest.update(f"{path} {leaf}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def table(score: Score) -> dict:
    low, high = score.interval
    return {"right": score.right, "total": score.total, "accuracy": round(score.accuracy, 4), "interval_95": [round(low, 4), round(high, 4)]}


def count(named: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in named.values())


def count_base(model: nn.Module) -> int:
    """Parameters of the model without its adapters."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".adapters." not in name)


def say(model: nn.Module, config: AdapterConfig, trained: dict, s: Settings, data: Data, cut: int, empty: int) -> None:
    """The lines that stand above the progress bars."""
    base = count_base(model)
    print(f"model    {s.model}: {model.family}, {base:,} parameters, frozen, {s.dtype} on {s.device}")
    for name, where in s.load.items():
        print(f"loaded   {name}, frozen, from {where}")
    print(f"adapter  {s.adapter.get('preset', config.kind)} at {config.place()}: {count(trained):,} parameters, "
          f"{100 * count(trained) / base:.2f} % of the model")
    print(f"data     {data.name}: {len(data.train):,} rows to train on, tests {', '.join(f'{name} ({len(rows)})' for name, rows in data.tests.items())}")
    if cut:
        print(f"         {cut} of {len(data.train):,} rows are longer than {s.train.cutoff} tokens and were cut off there (train.cutoff)"
              + (f"; {empty} had no room for a response and were left out" if empty else ""))


def resume_settings(folder: Path) -> Settings:
    """The settings of an interrupted run. Raises UserError when there is none, or when it is complete."""
    if not (folder / "run.toml").is_file():
        raise UserError(f"{folder} holds no run.toml: there is no run to resume")
    if (folder / "result.json").is_file():
        raise UserError(f"{folder} is complete; see {folder / 'report.html'}")
    return settings(config=str(folder / "run.toml"))


def can_resume(folder: Path) -> bool:
    return (folder / CHECKPOINT).is_file()
