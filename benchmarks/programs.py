"""Rows of a comparison that are whole programs: evaluation, and the time to start."""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import peer_answers
from benchmarks.compare import Context, Different, Row, summary
from benchmarks.loading import LOADERS
from benchmarks.process import ROOT, Measured, run_command
from data.stops import stop_ids
from experiments.evaluate import evaluate
from model.tokenizer import load_tokenizer
from train.settings import settings

RUN = (sys.executable, str(ROOT / "run.py"))
PEER = (sys.executable, "-P", str(ROOT / "benchmarks" / "peer_answers.py"))


def start_row(row: Row, context: Context) -> dict:
    """From the start of Python to a model with its weights, then the end of the process."""
    names = ["this project", "transformers"] if context.peer else ["this project"]
    sides = {side: Measured() for side in ("ours", "peer")[: len(names)]}
    for turn in range(context.repeats + 1):  # the first brings the files into the page cache
        for side, name in zip(sides.values(), names, strict=True):
            imports, call = LOADERS[name]
            code = f"{imports}\nmodel = {call.format(repr(context.model))}"
            run = timed((sys.executable, "-c", code), lambda code=code: exec(code, {}), context)
            if turn or context.smoke:
                side.runs.append(run)
    return summary(row.name, sides) | {"equal": "-"}


def help_row(row: Row, context: Context) -> dict:
    """`run.py --help`, which has no other side."""
    found = Measured([run_command((*RUN, "--help")) for _ in range(context.repeats)])
    return summary(row.name, {"ours": found}) | {"equal": "-"}


def timed(command: Sequence[str], work: Callable[[], object], context: Context) -> dict:
    """Run the command; in a smoke run do its work in this process."""
    if not context.smoke:
        return run_command(command)
    began = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - began, "peak": 0}


def evaluate_row(row: Row, context: Context) -> dict:
    """`run.py evaluate` from start to end beside a plain loop on transformers' generate.

    options: items of each test set, `new` tokens at most, ours {batch, beams}, peer {batch, beams,
    use_cache, items}; where the peer answers fewer problems, its time is scaled.
    """
    o = row.options
    if context.smoke:
        o = o | {"items": 1, "new": 2, "peer": o["peer"] | {"items": 1}}
    with TemporaryDirectory() as work:
        if context.peer and not context.smoke:
            check = o | {"items": 1, "new": 16, "peer": o["peer"] | {"items": 1}}
            answered(Path(work) / "float32", check, context, "float32", 1)
        # a peer that needs minutes for each problem is asked once
        repeats = context.repeats if o["peer"]["items"] == o["items"] else 1
        return answered(Path(work) / "bfloat16", o, context, "bfloat16", repeats) | {
            "work": row.name
        }


def answered(work: Path, o: dict, context: Context, dtype: str, repeats: int) -> dict:
    """Both programs in turn. Raises Different for other texts in float32."""
    work.mkdir()
    ours, peer = Measured(), Measured()
    for turn in range(repeats):
        out = work / str(turn)
        ours.runs.append(evaluated(o, context, dtype, out))
        problems = problems_of(out / "predictions.jsonl", o["items"], o["peer"]["items"])
        if turn == 0:
            write_jobs(work / "jobs.json", problems, context.model, o, dtype)
        if context.peer:
            files = (str(work / "jobs.json"), str(work / "answers.json"))
            words = (context.model, *files)
            run = timed((*PEER, *words), lambda words=words: peer_answers.main(*words), context)
            peer.runs.append(run | {"seconds": run["seconds"] * o["items"] / o["peer"]["items"]})
    result = summary("", {"ours": ours} | ({"peer": peer} if context.peer else {}))
    if not context.peer:
        return result | {"equal": "-"}
    tokenizer = load_tokenizer(context.model)
    same = 0
    for problem, ids in zip(problems, json.loads((work / "answers.json").read_text()), strict=True):
        ends = [ids.index(stop) for stop in stop_ids(tokenizer) if stop in ids]
        text = tokenizer.decode(ids[: min(ends, default=len(ids))])
        same += text.strip() == problem["output"].strip()
    if dtype == "float32" and same < len(problems):
        raise Different(f"{len(problems) - same} of {len(problems)} texts differ in float32")
    scaled = f"; the peer's time is of {len(problems)} problems, scaled"
    return result | {
        "equal": f"text ({same}/{len(problems)} in {dtype})"
        + scaled * (o["peer"]["items"] < o["items"])
    }


def evaluated(o: dict, context: Context, dtype: str, out: Path) -> dict:
    """Run the command `evaluate`; its predictions lie in `out`."""
    plain = {
        "model": context.model,
        "data": "math-v1" if context.data_dir else "wordproblems",
        "data_dir": context.data_dir,
        "dtype": dtype,
        "device": "cpu",
    }
    answers = {
        "items": o["items"],
        "batch_size": o["ours"]["batch"],
        "beams": o["ours"]["beams"],
        "max_new_tokens": o["new"],
    }
    words = [*RUN, "evaluate", "--out", str(out)]
    for key, value in (plain | answers).items():
        words += [f"--{key.replace('_', '-')}", str(value)] if value else []

    def here() -> None:
        out.mkdir()
        with redirect_stdout(io.StringIO()):
            evaluate(settings(options=plain | {"eval": answers}), [], out)

    return timed(words, here, context)


def problems_of(path: Path, items: int, wanted: int) -> list[dict]:
    """The first `wanted` of the `items` predictions of each set."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["index"] < min(items, wanted)]


def write_jobs(path: Path, problems: list[dict], model: str, o: dict, dtype: str) -> None:
    """What peer_answers.py reads."""
    tokenizer = load_tokenizer(model)
    job = {
        "prompts": [tokenizer.encode(problem["prompt"]) for problem in problems],
        "stop": stop_ids(tokenizer),
        "dtype": dtype,
        "new": o["new"],
        **{key: o["peer"][key] for key in ("batch", "beams", "use_cache")},
    }
    path.write_text(json.dumps(job))
