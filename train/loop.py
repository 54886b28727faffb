"""The training loop, all of it."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from adapters.begin import check_begun
from adapters.in_use import after_step, penalty
from data.batches import Example, epoch_order, micro_batches, seed_from
from files.errors import short_of_memory
from files.progress import progress_bar
from model.compiled import compiled
from model.language import LanguageModel
from model.tokens import check_ids
from train.checkpoint import NotFinite, State
from train.deterministic import deterministic, in_tf32
from train.measure import mean_loss
from train.offload import offloaded
from train.optim import LossScale, adamw, learning_rate
from train.parallel import SINGLE, Processes
from train.pipeline import Busy, accumulate, busy_text
from train.settings import Train
from train.signals import Signals
from train.teacher import Teacher

MAX_SKIPPED = 25  # non-finite steps in a row that end a run; float16 finds its scale in about 16


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int  # steps that were taken
    skipped: int  # of these, steps whose gradient was not finite
    signal: int  # the number of the signal that stopped training, or 0
    adapter_step: int  # the step whose weights the model has now
    validation: dict  # best_step and best_loss, where there are validation rows


def train(
    model: LanguageModel,
    parameters: dict[str, nn.Parameter],
    examples: Sequence[Example],
    s: Train,
    *,
    folder: Path,
    seed: int = 0,
    pad_id: int = 0,
    fingerprints: dict[str, str] | None = None,
    resume: bool = False,
    rates: dict[str, float] | None = None,
    held_out: Sequence[Example] = (),
    log: Callable[[dict], None] = lambda entry: None,
    processes: Processes = SINGLE,
    teacher: Teacher | None = None,
) -> Outcome:
    """Train `parameters` (float32, by name) of `model` on `examples`, checkpoints go to `folder`.

    examples: each has a token with a loss weight. fingerprints: facts that a checkpoint to resume
    from must share (data, settings ...). rates: factors of the learning rate, by name of
    the parameter. held_out: validation rows; with `s.best` the model ends with the weights of the
    lowest loss on them. log: gets a dict each step. processes: each computes its share of the
    micro-batches; rank 0 logs and saves. teacher: whose distributions are learned.

    A resumed run takes, to the bit, the steps of an uninterrupted one; on a GPU, if
    `s.deterministic`. SIGINT and SIGTERM finish the step, save and return. Raises UserError when
    the gradient stays non-finite, memory runs out, an id has no row in the embedding, or the
    checkpoint to resume from was made with other `fingerprints`.
    """
    fingerprints = fingerprints or {}
    check_ids((row.ids for row in (*examples, *held_out)), model.input_embedding.in_features)
    check_begun(model)
    total = s.max_steps or math.ceil(len(examples) / s.batch_size) * s.epochs
    half = model.dtype == torch.float16
    scale = LossScale(scale=2.0**16 if half else 1.0, dynamic=half)
    optimizer = adamw(parameters, s, rates or {})
    state = State(model, parameters, optimizer, scale)
    if resume:
        state.load(folder, fingerprints, total)
    processes.agree(fingerprints | {"step": str(state.step)}, {"the adapter's weights": parameters})
    most = math.ceil(min(s.batch_size, len(examples)) / s.rows_at_once(max(map(len, examples))))
    if most < processes.world:
        tqdm.write(
            f"{most} micro-batch{'es' * (most > 1)} a step for {processes.world} processes: "
            f"lower {s.at_once}, or raise train.batch_size"
        )
    fill = s.tokens_per_batch, s.packing  # of micro-batches
    validate_every = s.validate_every or s.save_every
    busy: list[Busy] = []  # of each step, if the layers are split over several devices
    model.train()
    model.checkpointing = s.checkpoint_every
    bar = progress_bar(total, state.step, unit="step", disable=not processes.is_writer)
    fixed = deterministic() if s.deterministic else nullcontext()
    faster = compiled(model) if s.compile else nullcontext()
    rounded = in_tf32() if s.tf32 else nullcontext()
    with fixed, rounded, faster, Signals() as signals, bar:
        for step, rows in steps(examples, s, seed, state.step, total):
            if out_of_patience(state, s.patience, validate_every):
                break
            began = time.perf_counter()
            rate = learning_rate(s, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]

            # forward and backward: summed losses, divided by the loss weight of the whole step
            weight = sum(sum(row.weights[1:]) for row in rows)
            batches = {
                seed_from(seed, step, number): batch  # the key seeds dropout
                for number, batch in enumerate(micro_batches(rows, s.micro_batch_size, *fill))
            }
            memory = short_of_memory(
                f"on {model.device} with {s.amount} at once: lower {s.at_once} "
                "or set train.checkpointing=block; the last checkpoint is "
                f"intact, --resume {folder} takes both with --set"
            )
            with processes.rescue(state.rescue, folder, fingerprints, s.keep), memory:
                with offloaded(model) if s.offload else nullcontext():
                    mine, divisor = processes.share(batches), weight / scale.scale
                    losses, used = accumulate(model, mine, divisor, pad_id, s.packing, teacher)
                loss = sum(processes.gather(sum((part / weight).item() for part in losses)))
                processes.sum_gradients(parameters.values())
                if (extra := penalty(model)) is not None:  # of AdaLoRA, for example
                    (extra * scale.scale).backward()

            # unscale, clip, update
            for parameter in parameters.values():
                if parameter.grad is not None and scale.scale != 1.0:
                    parameter.grad /= scale.scale
            norm = nn.utils.clip_grad_norm_(parameters.values(), s.clip).item()
            finite = math.isfinite(norm) and math.isfinite(loss)
            if finite:
                optimizer.step()
                state.skipped_in_a_row = 0
            else:
                skip(state, step)
            after_step(model, step + 1, total)  # AdaLoRA changes its ranks
            optimizer.zero_grad()
            scale.update(finite)
            state.step = step + 1
            tokens = sum(map(len, rows)) / (time.perf_counter() - began)

            # validate and log
            entry = {
                "step": state.step,
                "loss": finite_or_none(loss),
                "learning_rate": rate,
                "gradient_norm": finite_or_none(norm),
                "tokens_per_second": round(tokens),
                "skipped": not finite,
            }
            shown = {"loss": f"{loss:.3f}", "lr": f"{rate:.1e}", "tok_s": f"{tokens:.0f}"}
            if held_out and (state.step % validate_every == 0 or state.step == total):
                with short_of_memory(
                    f"on {model.device} while validating: lower {s.at_once}; "
                    f"the last checkpoint in {folder} is intact"
                ):
                    validation = mean_loss(
                        model, held_out, s.micro_batch_size, pad_id, processes, *fill, teacher
                    )
                state.validated(validation)
                entry["validation_loss"] = finite_or_none(validation)
            if used is not None:
                busy.append(used)
                entry["devices_busy"] = round(used.measured, 3)
                entry["devices_busy_side_by_side"] = round(used.side_by_side, 3)
                shown["busy"] = f"{100 * used.measured:.0f}%"
            log(entry)
            bar.set_postfix(**shown, refresh=False)
            bar.update()

            # save
            received = int(max(processes.gather(signals.received)))  # by any of the processes
            if received or state.step % s.save_every == 0 or state.step == total:
                processes.agree({}, {f"the adapter's weights after step {state.step}": parameters})
                state.save(folder, fingerprints, s.keep, write=processes.is_writer)
                processes.barrier()  # the file is complete before any process goes on
            if received:
                return Outcome(state.step, state.skipped, received, state.step, state.validation)
    if signals.received:  # during the last save: the handlers from before the loop get it
        signal.raise_signal(signals.received)
    if busy:
        tqdm.write(busy_text(busy, len(model.stages), most, s.at_once))
    model.eval()
    model.checkpointing = 0
    adapter_step = state.step
    if s.best and state.best:
        state.restore_weights(state.best)
        adapter_step = state.best["step"]
    return Outcome(state.step, state.skipped, 0, adapter_step, state.validation)


def steps(
    examples: Sequence[Example], s: Train, seed: int, first: int, total: int
) -> Iterator[tuple[int, list[Example]]]:
    """(step, its rows) of the steps from `first` on; seed and step number alone decide the rows."""
    lengths = [len(example) for example in examples]
    order: list[list[int]] = []
    for step in range(first, total):
        epoch, batch = divmod(step, math.ceil(len(examples) / s.batch_size))
        if batch == 0 or not order:
            order = epoch_order(lengths, s.batch_size, seed, epoch, s.group_by_length)
        yield step, [examples[row] for row in order[batch]]


def out_of_patience(state: State, patience: int, validate_every: int) -> bool:
    """Whether the last `patience` validations (0: no limit) found no lower loss."""
    if not patience or not state.best:
        return False
    stop = state.step - state.best["step"] >= patience * validate_every
    if stop:
        tqdm.write(
            f"no lower validation loss in {patience} validations: stopped after step {state.step}"
        )
    return stop


def skip(state: State, step: int) -> None:
    """Drop the gradients of a step that are not finite. Raises UserError after MAX_SKIPPED."""
    state.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row == MAX_SKIPPED:
        raise NotFinite(
            f"the gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step + 1}: "
            "lower train.learning_rate"
        )
    state.optimizer.zero_grad()


def finite_or_none(number: float) -> float | None:
    """The number as JSON can hold it."""
    return number if math.isfinite(number) else None
