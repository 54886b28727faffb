"""Several processes over gloo beside one: the efficiency of training and of evaluation."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from adapters import attach
from benchmarks.machine import machine
from benchmarks.process import run_python
from benchmarks.random_weights import random_model
from benchmarks.report import Report, percent, seconds
from benchmarks.training import random_rows, timed_training
from eval.predict import predict
from files.errors import UserError
from model import load_model, load_tokenizer
from model.language import LanguageModel
from model.registry import POCKET, find
from train.parallel import Processes, started
from train.settings import Eval, Train

CODE = "import sys; from benchmarks.scaling import measure; measure(sys.argv[1])"
HEADS = ("work", "1 process, s", "processes", "all together, s", "speed", "efficiency", "equal")


def scaling_lines(model: str, out: str, repeats: int, processes: int, smoke: bool) -> Iterator[str]:
    """The same work by one process and by several, each with OMP_NUM_THREADS threads, or one.

    Training: steps of 16 rows of 128 tokens in micro-batches of 2, the losses must agree.
    Evaluation: 32 answers of 32 tokens, the texts must be the same. Weights of a folder are used,
    of another name random ones. Raises UserError, also where results differ.
    """
    if (cores := len(os.sched_getaffinity(0))) < processes:
        raise UserError(
            f"--processes {processes} need as many cores, and this process may use {cores}: "
            "they would only wait for each other"
        )
    o = {"model": "pocket-llama" if smoke else model, "repeats": 1 if smoke else repeats}
    o |= {"rows": 4, "tokens": 16, "new": 2} if smoke else {"rows": 16, "tokens": 128, "new": 32}
    threads = os.environ.get("OMP_NUM_THREADS", "1")  # as torchrun has it
    facts = machine() | {"model": o["model"], "threads of each": threads}
    report = Report("Several processes over gloo", out, facts, HEADS, cells)
    yield report.machine_line()
    (alone,), (together,) = (
        run_python(CODE, json.dumps(o), processes=count, OMP_NUM_THREADS=threads)
        for count in (1, processes)
    )
    differ = []
    for work in ("training", "evaluation"):
        one, several = alone[work], together[work]
        equal = one["result"] == several["result"]
        if work == "training":
            pairs = zip(one["result"], several["result"], strict=True)
            equal = all(abs(a - b) <= 1e-4 * abs(a) for a, b in pairs)
        row = {"work": work, "one": one["seconds"], "several": several["seconds"]}
        yield report.add(row | {"processes": processes, "equal": equal})
        differ += [] if equal else [work]
    yield from report.lines()
    if differ:
        raise UserError(f"several processes gave other results: {' and '.join(differ)}")


def measure(text: str) -> None:
    """In one of the processes: do both, and print seconds and results."""
    o = json.loads(text)
    with started() as processes:
        if isinstance(find(o["model"]), Path):
            model, folder = load_model(o["model"], torch.float32), o["model"]
        else:
            model, folder = random_model(o["model"], torch.float32), str(POCKET / "llama")
        answers = answering(model, folder, o, processes)
        found = {"training": training(model, o, processes), "evaluation": answers}
        if processes.is_writer:
            print(json.dumps(found), flush=True)
    os._exit(0)  # as run.py's `leave`


def training(model: LanguageModel, o: dict, processes: Processes) -> dict:
    """Seconds of the fastest step, and the losses."""
    torch.manual_seed(0)
    attach(model, "lora")
    rows = random_rows(model, o["rows"], o["tokens"])
    s = Train(
        batch_size=o["rows"],
        micro_batch_size=2,
        max_steps=o["repeats"] + 1,
        warmup_steps=0,
        save_every=10**6,
    )
    entries, spent = timed_training(model, rows, s, processes=processes)
    return {"seconds": min(spent), "result": [entry["loss"] for entry in entries]}


def answering(model: LanguageModel, folder: str, o: dict, processes: Processes) -> dict:
    """Seconds of the fastest evaluation of 2 x rows problems, and the answers."""
    problems = [
        {"instruction": f"Tom has {n} pens and buys {n + 3} more. How many pens?", "input": ""}
        | {"answer": f"{2 * n + 3}"}
        for n in range(2 * o["rows"])
    ]
    tokenizer = load_tokenizer(folder)
    decoding = Eval(batch_size=8, max_new_tokens=o["new"])
    least = float("inf")
    for _ in range(o["repeats"]):
        processes.barrier()
        began = time.perf_counter()
        found = predict(
            model,
            tokenizer,
            {"MultiArith": problems},
            template="alpaca",
            decoding=decoding,
            processes=processes,
        )
        least = min(least, time.perf_counter() - began)
    return {"seconds": least, "result": [prediction["output"] for prediction in found]}


def cells(row: dict) -> list[str]:
    speed = row["one"] / row["several"]
    return [
        row["work"],
        seconds(row["one"]),
        str(row["processes"]),
        seconds(row["several"]),
        f"{speed:.2f}",
        percent(speed / row["processes"]),
        "yes" if row["equal"] else "NO",
    ]
