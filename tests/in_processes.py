"""What tests/train/test_parallel.py starts several times over: python tests/in_processes.py FOLDER,
with torchrun's variables in the environment.

Each case trains the tiny model; rank 0 leaves losses and weights in FOLDER/CASE-WORLD.pt.
FOLDER/tiny holds the checkpoint.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from conftest import write_checkpoint  # noqa: F401 - no network from here on
from families import batch
from methods import attach_small
from training_runs import S, examples

from adapters import named_parameters, parameters
from cli.main import leave
from eval.generate import generate
from model import UserError, load_model
from model.fsdp import is_part
from model.sites import Linear
from train import loop
from train.loop import train
from train.parallel import SINGLE, Processes, started

# name -> (method, its options, settings); 3 micro-batches a step: too few for 4 processes, uneven
# for 2
CASES = {
    "parallel": ("parallel", {}, S),
    "dropout": ("lora", {"r": 2, "dropout": 0.3}, S),
    "adalora": ("adalora", {}, S),
    "float16": ("parallel", {}, S),
}
SHARDED = {
    "sharded": ("series", {"size": 4}, replace(S, checkpointing="every 2")),
    "dora": ("dora", {}, S),
    "pissa": ("pissa", {}, S),
    "full": ("full head", {"sites": ["down"]}, S),
}


def trained(
    base: Path,
    case,
    processes: Processes = SINGLE,
    mesh=None,
    stop: int = 0,
    dtype=None,
    watch=lambda model: None,
    **more,
) -> dict:
    """{losses, weights, signal, skipped} of a run; stop: the last process sends itself a signal
    after this step.
    """
    method, options, s = case
    model = load_model(str(base / "tiny"), mesh=mesh, dtype=dtype)
    torch.manual_seed(0)
    attach_small(model, method, **options)
    watch(model)
    entries = []

    def log(entry: dict) -> None:
        entries.append(entry)
        if entry["step"] == stop and processes.rank == processes.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = {
        "seed": 1,
        "pad_id": 0,
        "folder": base,
        "fingerprints": {"base model": "b"},
        "log": log,
        "processes": processes,
    } | more
    outcome = train(model, named_parameters(model), examples(), s, **arguments)
    return {
        "losses": [one["loss"] for one in entries],
        "norms": [one["gradient_norm"] for one in entries],
        "signal": outcome.signal,
        "skipped": outcome.skipped,
        "step": outcome.step,
        "weights": [one.detach().clone() for one in parameters(model)],
        "model": model,
    }


def poisoned(folder: Path, processes: Processes) -> dict:
    """A run in which the gradient of one process, not the writer, is not finite in the third
    step.
    """
    steps, accumulate = [], loop.accumulate

    def spoilt(model, *arguments):
        steps.append(1)
        found = accumulate(model, *arguments)
        if len(steps) == 3 and not processes.is_writer:
            parameters(model)[0].grad = torch.full_like(parameters(model)[0], float("inf"))
        return found

    loop.accumulate = spoilt
    try:
        return trained(folder, CASES["parallel"], processes)
    finally:
        loop.accumulate = accumulate


def main(folder: Path) -> None:
    with started() as processes:

        def keep(name: str, found) -> None:
            if processes.is_writer:
                found = (
                    {key: value for key, value in found.items() if key != "model"}
                    if isinstance(found, dict)
                    else found
                )
                torch.save(found, folder / f"{name}-{processes.world}.pt")

        stopped = folder / "stopped"
        stopped.mkdir(exist_ok=True)
        for name, case in (
            CASES.items()
            if processes.world == 2
            else [("adalora", CASES["adalora"]), ("dropout", CASES["dropout"])]
        ):
            keep(
                name,
                trained(
                    folder, case, processes, dtype=torch.float16 if name == "float16" else None
                ),
            )
        keep("refused", processes.exchange(refusal(processes)))
        keep("gradients", processes.exchange(added(processes)))
        if processes.world == 4:
            found = trained(folder, CASES["dropout"], processes, stop=3, folder=stopped)
            keep("stopped", processes.exchange((found["signal"], found["step"])))
        else:
            keep(
                "resumed",
                trained(folder, CASES["dropout"], processes, resume=True, stop=6, folder=stopped),
            )  # what four had begun
            trained(folder, CASES["dropout"], processes, stop=5)
            keep("exact", trained(folder, CASES["dropout"], processes, resume=True))
            keep("poisoned", poisoned(folder, processes))
            sharded(folder, processes, keep)


def refusal(processes: Processes) -> str:
    """What processes say that were started with different data."""
    try:
        processes.agree({"data": str(processes.rank), "settings": "same"})
    except UserError as error:
        return str(error)
    return ""


def added(processes: Processes) -> list:
    """The sums where all, the first alone, or none of the processes has a gradient of ones."""
    made = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
    made[0].grad = torch.ones(2, 3)
    if processes.is_writer:
        made[1].grad = torch.ones(2, 3)
    processes.sum_gradients(made)
    return [one.grad for one in made]


def sharded(folder: Path, processes: Processes, keep) -> None:
    """The base in parts: the same training, less memory."""
    processes = replace(processes, sharded=True)
    mesh = processes.mesh(torch.device("cpu"))
    for name, case in SHARDED.items():
        gathered: list[int] = []
        found = trained(
            folder,
            case,
            processes,
            mesh,
            watch=lambda model, gathered=gathered: count_gathered(model, gathered),
        )
        keep(name, found)
        if name == "sharded":
            ids, mask = batch("left")
            keep("answers", generate(found["model"], ids, mask, max_new_tokens=6))
            blocks = [
                tensor
                for block in found["model"].blocks
                for path, tensor in block.named_parameters()
                if ".adapters." not in path and tensor.dim() > 1
            ]
            held = sum(one.to_local().untyped_storage().nbytes() for one in blocks)
            keep(
                "bytes",
                processes.exchange(
                    (held, sum(one.numel() * one.element_size() for one in blocks), gathered)
                ),
            )


def count_gathered(model, counts: list[int]) -> None:
    """Whenever a block's last Linear computes, with a whole weight, note how many blocks have
    theirs whole.
    """
    for block in model.blocks:

        def compute(x, weight, bias, linear=block.mlp.down_proj):
            assert weight.shape == (linear.out_features, linear.in_features)
            counts.append(sum(not is_part(one.mlp.down_proj.weight) for one in model.blocks))
            return Linear.compute(linear, x, weight, bias)

        block.mlp.down_proj.compute = compute


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
