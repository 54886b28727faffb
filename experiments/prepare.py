"""Everything that a run needs before its first step, checked: data, model, adapter, examples."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from adapters import attach, load_adapter, named_parameters, use
from adapters.attach import adapter_names, adapters_named, in_order
from adapters.begin import begin, begins
from adapters.config import AdapterConfig
from adapters.several import SETUP
from data.batches import Example, batch_of, epoch_order, micro_batches
from data.leakage import Leak
from data.prompts import AUTO, NAMES, Template
from data.sources import Data
from eval.room import positions_of, room_lines
from experiments.base import check_base, choose_devices, dtype_name, load_base
from experiments.continued import Start, load_start, template_of
from experiments.history import held_out_seen, seen_in_training
from experiments.loading import named_data
from experiments.measured import HeldOut, first_problems, hold_out_share, reading_lines
from experiments.rows import (
    Encoded,
    check_earlier,
    check_leakage,
    encode_rows,
    hold_out,
    leak_lines,
    load_rows,
    validation_lines,
)
from experiments.tracker import check_tracker
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.tokenizer import Tokenizer
from train.parallel import Processes
from train.settings import Settings, Train, to_toml
from train.teacher import TEACHER, Teacher

FREE_OF_TRAIN = (  # settings that change training by rounding and dropout only
    *("micro_batch_size", "tokens_per_batch", "packing"),
    *("checkpointing", "offload", "compile", "keep", "tracker"),
)


@dataclass(frozen=True)
class Prepared:
    """A run that can begin."""

    settings: Settings  # with what "auto" came to
    tokenizer: Tokenizer
    template: Template
    data: Data
    tests: dict[str, list[dict]]
    model: LanguageModel  # with its adapters
    config: AdapterConfig  # of the adapter that is trained
    preset: str  # its name in presets.toml, where it is known
    start: Start | None  # where a saved adapter is trained further
    loaded: dict[str, dict]  # name -> `run` section of each frozen adapter below it
    active: list  # the adapters that are on, in order (adapters.use)
    teacher: Teacher | None  # whose distributions are learned
    trained: dict[str, nn.Parameter]
    encoded: Encoded  # the training rows
    share: HeldOut  # the rows of data without answers that the loss is measured on
    examples: list[Example]  # to train on
    held_out: list[Example]  # to validate on
    leaks: dict[str, Leak]  # what of the tests is in the training rows
    earlier: list[dict[str, Leak]]  # what of the tests earlier runs of the adapters trained on
    fingerprints: dict[str, str]
    lines: list[str]  # what to know of the data

    @property
    def history(self) -> list[dict]:
        """The runs that made the adapter before, the oldest first."""
        return self.start.history if self.start else []


def prepare(s: Settings, processes: Processes) -> Prepared:
    """Load and check everything. The cheap checks come first. Raises UserError."""
    tokenizer = check_base(s)
    devices = choose_devices(s, processes)
    check_tracker(s.train.tracker)
    check_teacher(s)
    if s.template not in (*NAMES, AUTO) and not s.continue_from:
        raise unknown("prompt template", s.template, (*NAMES, AUTO))
    data, kept = load_rows(s)
    tests = first_problems(data, s)
    leaks = check_leakage(data, tests, s.train_on_test)
    if len(devices) > 1 and not s.layers_per_device:
        from experiments.layout import layers_for  # slow to import

        s = replace(s, layers_per_device=layers_for(s, devices))

    model = load_base(s, processes)
    frozen = s.load | ({TEACHER: s.teacher} if s.teacher else {})
    runs = {name: load_adapter(model, folder, name) for name, folder in frozen.items()}
    loaded = adapters_fingerprint(model, list(frozen))
    torch.manual_seed(s.seed)
    start = load_start(model, s, tokenizer) if s.continue_from else None
    config = start.config if start else attach(model, s.adapter)
    template = template_of(s, tokenizer, start, data.is_own)
    runs |= start.loaded if start else {}
    history = start.history if start else []
    where = s.data_dir, named_data(s)
    earlier, earlier_lines = seen_in_training([*runs.values(), *history], tests, *where)
    earlier_lines += held_out_seen([*runs.values(), *history], data.held_out, *where)
    check_earlier(seen_in_training(history, tests, *where)[0], s.train_on_test)
    # the loaded ones, then the new one; or a fusion of them
    active = [entry for entry in in_order(model) if entry != TEACHER]
    use(model, active, train=["default"])

    if model.block_adapters() and (data.is_text or s.train.prompt_weight):
        cause = "train.prompt_weight = 0" if s.train.prompt_weight else "data that is no plain text"
        raise UserError(
            f"{config.kind} adapters change the prompt's tokens, and a prompt ends where the loss "
            f"begins: they need {cause}"
        )
    encoded = encode_rows(tokenizer, data.train, data.is_text, template, s)
    check_positions(model, encoded.examples)
    share = hold_out_share(tokenizer, data, template, s, encoded.examples)
    examples, held_out, twins = hold_out(share.training, s.train.validation_rows, s.seed)
    if not start and any(map(begins, config.parts.values())):
        config = begin(model, learned_tokens(examples, s, tokenizer.pad_id or 0, model.device))
    lines = [*kept, *reading_lines(tests, data.reads), *encoded.lines, *share.lines]
    lines += [*validation_lines(len(held_out), twins, s), *leak_lines(leaks)]
    lines += dict.fromkeys(earlier_lines)
    lines += room_lines(model, tokenizer, tests, template, s.eval)

    here = ",".join(str(stage.device) for stage in model.stages) or str(model.device)
    s = replace(
        s,
        template=template.name,
        device=here if processes.world == 1 else model.device.type,
        dtype=dtype_name(model.dtype),
        layers_per_device=[stage.end - stage.first for stage in model.stages],
    )
    fingerprints = {
        "base model": model.fingerprint,
        "loaded adapters": loaded,
        "data": data.fingerprint,
        "settings": fingerprint(s),
    }
    if start:
        continued = adapters_fingerprint(model, adapter_names(model))
        fingerprints["adapter to continue"] = continued
    measured_on = {"tests": hashlib.sha256(json.dumps(tests).encode()).hexdigest()}
    processes.agree(fingerprints | measured_on)
    return Prepared(
        settings=s,
        tokenizer=tokenizer,
        template=template,
        data=data,
        tests=tests,
        model=model,
        config=config,
        preset=start.preset if start else s.adapter.preset,
        start=start,
        loaded=runs,
        active=active,
        teacher=Teacher(model) if s.teacher else None,
        trained=named_parameters(model),
        encoded=encoded,
        share=share,
        examples=examples,
        held_out=held_out,
        leaks=leaks,
        earlier=earlier,
        fingerprints=fingerprints,
        lines=lines,
    )


def check_teacher(s: Settings) -> None:
    """Raise UserError for a teacher that is no single adapter, or beside other adapters."""
    if s.teacher and (s.load or s.continue_from):
        raise UserError(
            "a new adapter learns from a teacher: leave out load and continue_from, or teacher"
        )
    if s.teacher and (Path(s.teacher) / SETUP).is_file():
        raise UserError(
            f"{s.teacher} holds several adapters, and one is learned from: combine makes one of "
            f"them, or give one, such as {Path(s.teacher) / 'default'}"
        )


def learned_tokens(
    examples: list[Example], s: Settings, pad_id: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, whether they have a loss) [B, T] of the first epoch's micro-batches."""
    t = s.train
    for numbers in epoch_order(list(map(len, examples)), t.batch_size, s.seed, 0):
        rows = [examples[number] for number in numbers]
        for batch in micro_batches(rows, t.micro_batch_size, t.tokens_per_batch):
            ids, weights, *_ = batch_of(batch, pad_id, device)
            yield ids, weights > 0


def check_positions(model: LanguageModel, examples: list[Example]) -> None:
    """Raise UserError for a training row that is longer than the model's table of positions."""
    longest, positions = max(map(len, examples)), positions_of(model)
    if positions is not None and longest > positions:
        raise UserError(
            f"a row to train on has {longest} tokens, and the model has positions for {positions}: "
            f"set train.cutoff={positions}"
        )


def fingerprint(s: Settings) -> str:
    """The settings that determine training: a checkpoint is resumed only under the same."""
    train = replace(s.train, **{key: getattr(Train(), key) for key in FREE_OF_TRAIN})
    machine = {
        "device": "",
        "layers_per_device": [],
        "shard": False,
        "threads": 0,
        "data_dir": "",
        "load": dict.fromkeys(s.load, ""),
        "teacher": "a folder" if s.teacher else "",
        "continue_from": "a folder" if s.continue_from else "",
    }
    same = replace(s, **machine, tests=[], train_on_test=False, eval=type(s.eval)(), train=train)
    return to_toml(same)


def adapters_fingerprint(model: LanguageModel, names: list[str]) -> str:
    """A hash of the weights of these adapters."""
    digest = hashlib.sha256()
    for name in names:
        for path, adapter in adapters_named(model, name).items():
            for leaf, tensor in adapter.state_dict().items():
                digest.update(f"{path} {leaf}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
