"""The training loop, all of it."""

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from adapters.attach import after_step, penalty
from data.batches import Example, epoch_order, micro_batches, seed_from
from files.errors import UserError, short_of_memory
from train.checkpoint import State
from train.loss import mean_loss
from train.offload import offloaded
from train.optim import LossScale, learning_rate
from train.parallel import ALONE, Processes
from train.pipeline import Busy, accumulate, busy_text
from train.settings import Train
from train.signals import Signals

MAX_SKIPPED = (
    25  # non-finite steps in a row before the run stops; float16 needs about 16 to find its scale
)


@dataclass
class Outcome:
    """How training ended: after `step` steps; `signal` is the number of the signal that stopped it, or 0."""

    step: int
    skipped: int
    signal: int
    adapter_step: int  # the step whose weights the model has now
    validation: dict  # best_step and best_loss, where there was something to validate on


def train(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    examples: Sequence[Example],
    s: Train,
    *,
    seed: int,
    pad_id: int,
    folder: Path,
    fingerprints: dict[str, str],
    resume: bool = False,
    rates: dict[str, float] | None = None,
    held_out: Sequence[Example] = (),
    log: Callable[[dict], None] = lambda entry: None,
    processes: Processes = ALONE,
) -> Outcome:
    """Train `parameters` (float32, by name) of `model` on `examples`, each with a token to learn, with checkpoints in `folder`.

    `rates` multiply the learning rate of some of them, by name. With rows `held_out`, the weights of the lowest loss on these are loaded in the end.
    Of several `processes` each computes its micro-batches; rank 0 logs and saves.
    Resuming continues to the bit what an undisturbed run would have done. SIGINT and SIGTERM finish the step, save and return.
    Raises UserError when the gradient stays non-finite, memory runs out, or the checkpoint to resume from does not fit.
    """
    device = model.device
    batches_per_epoch = math.ceil(len(examples) / s.batch_size)
    total = s.max_steps or batches_per_epoch * s.epochs
    lengths = [len(example) for example in examples]
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_rate.setdefault((rates or {}).get(name, 1.0), []).append(parameter)
    groups = [{"params": group, "rate": rate} for rate, group in by_rate.items()]
    optimizer = torch.optim.AdamW(
        groups, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay
    )
    half = model.dtype == torch.float16
    scale = LossScale(scale=2.0**16 if half else 1.0, dynamic=half)
    state = State(model, parameters, optimizer, scale)
    order: list[list[int]] = []
    shares: list[Busy] = []  # of each step, where there are several devices
    if resume:
        state.load(folder, fingerprints)
    processes.agree(fingerprints | {"step": str(state.step)}, {"the adapter's weights": parameters})
    most = math.ceil(
        min(s.batch_size, len(examples)) / s.micro_batch_size
    )  # micro-batches of a step; the last step of an epoch may have fewer
    if most < processes.world:
        tqdm.write(
            f"{most} micro-batch{'es' * (most > 1)} a step for {processes.world} processes: lower train.micro_batch_size, or raise train.batch_size"
        )

    validate_every = s.validate_every or s.save_every
    interval = (
        0.1 if sys.stderr.isatty() else 10
    )  # seconds between pictures of the bar; a log file wants few
    model.train()
    model.checkpointing = s.checkpoint_every
    with (
        Signals() as signals,
        tqdm(
            total=total,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=interval,
            disable=not processes.is_writer,
        ) as bar,
    ):
        for step in range(state.step, total):
            if (
                s.patience
                and state.best
                and step - state.best["step"] >= s.patience * validate_every
            ):
                tqdm.write(
                    f"no lower validation loss in {s.patience} validations: stopped after step {step}"
                )
                break
            began = time.perf_counter()
            rate = learning_rate(s, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]

            # the rows of this step: the seed and the step number alone decide them
            epoch, batch = divmod(step, batches_per_epoch)
            if batch == 0 or not order:
                order = epoch_order(lengths, s.batch_size, seed, epoch, s.group_by_length)
            rows = [examples[row] for row in order[batch]]

            # forward and backward: the loss is a sum, divided by the loss weight of the whole step
            weight = sum(sum(row.weights[1:]) for row in rows)
            batches = {
                seed_from(seed, step, number): some
                for number, some in enumerate(micro_batches(rows, s.micro_batch_size))
            }  # by seed of dropout
            with short_of_memory(
                f"on {device} with {s.micro_batch_size} rows at once: lower train.micro_batch_size "
                f"or set train.checkpointing=block; the last checkpoint is intact, --resume {folder} takes both with --set"
            ):
                with offloaded(model) if s.offload else nullcontext():
                    parts, busy = accumulate(
                        model, processes.share(batches), weight / scale.scale, pad_id
                    )
                loss = sum(processes.gather(sum((part / weight).item() for part in parts)))
                processes.sum_gradients(parameters.values())
                if (
                    extra := penalty(model)
                ) is not None:  # what some adapters ask for besides (AdaLoRA)
                    (extra * scale.scale).backward()

            # unscale, check, clip, update
            for parameter in parameters.values():
                if parameter.grad is not None and scale.scale != 1.0:
                    parameter.grad /= scale.scale
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), s.clip).item()
            finite = math.isfinite(norm) and math.isfinite(loss)
            if finite:
                optimizer.step()
                state.skipped_in_a_row = 0
            else:
                state.skipped, state.skipped_in_a_row = (
                    state.skipped + 1,
                    state.skipped_in_a_row + 1,
                )
                if state.skipped_in_a_row == MAX_SKIPPED:
                    raise UserError(
                        f"the gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step + 1}: lower train.learning_rate"
                    )
                optimizer.zero_grad(set_to_none=True)
            after_step(model, step + 1, total)  # some adapters change with time (AdaLoRA's ranks)
            optimizer.zero_grad(set_to_none=True)
            scale.update(finite)
            state.step = step + 1

            tokens = sum(map(len, rows)) / (time.perf_counter() - began)
            if busy is not None:
                shares.append(busy)
            validation = {}
            if held_out and ((step + 1) % validate_every == 0 or step + 1 == total):
                with short_of_memory(
                    f"on {device} while validating: lower train.micro_batch_size; the last checkpoint in {folder} is intact"
                ):
                    found = mean_loss(model, held_out, s.micro_batch_size, pad_id, processes)
                state.validated(found)
                validation = {"validation_loss": found if math.isfinite(found) else None}
            log(
                {
                    "step": step + 1,
                    "loss": loss if math.isfinite(loss) else None,
                    "learning_rate": rate,
                    "gradient_norm": norm if math.isfinite(norm) else None,
                    "tokens_per_second": round(tokens),
                    "skipped": not finite,
                    **validation,
                    **(
                        {}
                        if busy is None
                        else {
                            "devices_busy": round(busy.measured, 3),
                            "devices_busy_side_by_side": round(busy.side_by_side, 3),
                        }
                    ),
                }
            )
            shown = {} if busy is None else {"busy": f"{100 * busy.measured:.0f}%"}
            bar.set_postfix(
                loss=f"{loss:.3f}", lr=f"{rate:.1e}", tok_s=f"{tokens:.0f}", **shown, refresh=False
            )
            bar.update()
            received = int(max(processes.gather(signals.received)))  # whichever process it reached
            if received or (step + 1) % s.save_every == 0 or step + 1 == total:
                processes.agree({}, {f"the adapter's weights after step {step + 1}": parameters})
                state.save(folder, fingerprints, s.keep, write=processes.is_writer)
                processes.barrier()  # what is saved is there for all
            if received:
                return Outcome(state.step, state.skipped, received, state.step, state.validation)
    if (
        signals.received
    ):  # it came while the last step was saved: whoever listens now is to hear of it
        signal.raise_signal(signals.received)
    if shares:
        tqdm.write(busy_text(shares, len(model.stages), most))
    model.eval()
    model.checkpointing = 0
    if s.best and state.best:
        state.restore_weights(state.best)
        return Outcome(state.step, state.skipped, 0, state.best["step"], state.validation)
    return Outcome(state.step, state.skipped, 0, state.step, state.validation)
