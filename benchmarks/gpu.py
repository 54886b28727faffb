"""`benchmark --case gpu`: what one card does, in one command of minutes.

Random weights are made on the card. Each part has a process and a time limit of its own, and is in
the table before the next begins, so that a kill loses one part at most.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import torch

from benchmarks.compare import LIMITS
from benchmarks.gpu_parts import Part, parts, tiny
from benchmarks.machine import machine
from benchmarks.ours import put_adapters
from benchmarks.peer import missing
from benchmarks.process import in_turn
from benchmarks.random_weights import shaped
from benchmarks.report import Report, is_wanted, percent, ratio, seconds
from benchmarks.work import step_flops
from files.errors import UserError
from train.plan.dry_run import training_step
from train.settings import Train

HEADS = (
    "part", "seconds", "tokens/s", "share", "GB allocated", "GB reserved", "GB planned",
    "times as long", "result",
)  # fmt: skip
NOTES = (
    "share: of a step, of the product of two square matrices as large as `rates` says; of decoding,"
    " of the copy rate, as each token reads all weights and its keys and values once",
    "seconds: the least; of decoding those of a token for all rows, without the prompt",
    "times as long: a peer's seconds over ours, those of int8, nf4 or LoRA over plain bf16",
    "GB planned: of the tensors of a step, by the dry run of `plan`",
)


def gpu_lines(out: str, only: str, minutes: int, smoke: bool) -> Iterator[str]:
    """Each part as it ends, then the table. Raises UserError at the end for a wrong result.

    smoke: tiny shapes, in this process, on the CPU where there is no card. only: as in the table.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not smoke:
        raise UserError("the case gpu needs a GPU; --smoke runs it on the CPU with tiny shapes")
    end = monotonic() + 60 * minutes
    wanted = [part for part in parts() if is_wanted(part.name, only)]
    if not wanted:
        raise UserError(f"--only {only!r:.60} is in the name of no part")
    if smoke:
        wanted = [tiny(part, device) for part in wanted]
    facts = machine(device) | {"minutes": minutes} | ({"shapes": "tiny"} if smoke else {})
    report = Report("One card", out, facts, HEADS, cells)
    yield report.machine_line()
    without = missing()
    for note in filter(None, (*NOTES, without)):
        report.note(note)
    rates: dict = {}
    for part in wanted:
        left = end - monotonic()
        if part.is_peer and without:
            continue
        if left < part.limit / 3:
            row = {"part": part.name, "missing": "not run: no time left"}
        else:
            limit = min(part.limit, left)
            try:
                row = measure(part, device, limit, smoke, rates, report.rows)
            except Exception as error:  # of whatever kind: the other parts are measured
                text = f"failed: {type(error).__name__}: {error}"[:300]
                row = {"part": part.name, "missing": text, "wrong": [text]}
        yield report.add(row)
    report.plot(draw)
    yield from report.lines()
    wrong = [row["part"] for row in report.rows if row.get("wrong")]
    if wrong:
        raise UserError(f"wrong results, see `result`: {'; '.join(wrong)}")


def measure(
    part: Part, device: str, limit: float, smoke: bool, rates: dict, before: list[dict]
) -> dict:
    """The row of a part. rates: of the part of that name, which fills it."""
    o = part.options | {"device": device}
    row = {"part": part.name}
    if part.card and device == "cpu":
        row["note"] = f"needs a GPU, ran {'plain ' * ('compiled' in part.name)}on the CPU"
    with ThreadPoolExecutor(1) as threads:
        plan = threads.submit(planned, o) if part.kind == "step" and not part.is_peer else None
        try:
            side = in_turn(
                {"it": (part.work, o)}, part.repeats, warm=part.warm, fresh=not smoke, timeout=limit
            )["it"]
        except UserError as error:
            room = "out of memory" in str(error).lower()  # of a smaller card: nothing is wrong
            return row | {"missing": f"failed: {error}", "wrong": [] if room else [str(error)]}
        if plan is not None:
            row["planned"] = plan.result()
    found = side.facts
    row |= {"seconds": side.seconds, "allocated": side.peak, "reserved": found["reserved"]}
    if part.name == "rates":
        rates |= {key: found[key] for key in (*o["dtypes"], "copy")}
        text = "; ".join(f"{d} {rates[d] / 1e12:.4g} TFLOP/s" for d in o["dtypes"])
        row |= {"rates": rates, "result": f"{text}; copy {rates['copy'] / 1e12:.3g} TB/s"}
    elif part.kind == "step":
        row |= {"loss": found["loss"], "tokens": o["rows"] * o["tokens"] / side.seconds}
        if rates:
            row["share"] = step_flops(o, found["trained"]) / side.seconds / rates[o["dtype"]]
    elif part.kind == "decode":
        row |= {"seconds": found["token"], "prompt": found["first"]}
        row["tokens"] = o["batch"] / found["token"]
        if rates and "read" in found:
            row["share"] = found["read"] / found["token"] / rates["copy"]
    else:
        row |= {"seconds": found.get("step", side.seconds)}
        row |= {key: found[key] for key in ("result", "wrong", "failed", "output") if key in found}
        row["wrong"] = [*row.get("wrong", []), *row.get("failed", [])]
    return beside(part, row, before) if part.against else row


def beside(part: Part, row: dict, before: list[dict]) -> dict:
    """The row with its ratio to another, and for a peer's step the comparison of losses."""
    ours = next((r for r in before if r["part"] == part.against and "seconds" in r), None)
    if ours is None:
        return row
    row["ratio"] = row["seconds"] / ours["seconds"]
    if part.kind == "step" and part.is_peer:
        far = abs(row["loss"] - ours["loss"]) / abs(ours["loss"])
        row["result"] = f"losses within {far:.0e}"
        row["wrong"] = [row["result"]] if far > LIMITS["bfloat16"] else []
    return row


def planned(o: dict) -> int:
    """Bytes at the peak of this step, by the dry run on the meta device."""
    model = shaped(o["model"], getattr(torch, o["dtype"]), o["quantize"], o["layers"])
    put_adapters(model, o)
    s = Train(
        batch_size=o["rows"],
        micro_batch_size=o["micro"],
        checkpointing="block" if o["checkpointing"] else "none",
    )
    step = training_step(model, s, o["tokens"], device=o["device"])
    return step.phase.peak([0] * len(step.weights))[0]


def gigabytes(size: float | None) -> str:
    return f"{size / 1e9:.1f}" if size else "-"


def cells(row: dict) -> list[str]:
    result = row.get("missing") or row.get("result", "")
    wrong = "; ".join(row.get("wrong", []))
    if wrong and "missing" not in row:
        result = f"{result}; WRONG: {wrong}" if result else f"WRONG: {wrong}"
    texts = [text for text in (result, row.get("note", "")) if text]
    return [
        row["part"],
        seconds(row.get("seconds")),
        f"{row['tokens']:,.0f}" if "tokens" in row else "-",
        percent(row.get("share")),
        gigabytes(row.get("allocated")),
        gigabytes(row.get("reserved")),
        gigabytes(row.get("planned")),
        ratio(row.get("ratio")),
        "; ".join(texts) or "-",
    ]


def draw(figure, rows: list[dict]) -> None:
    """Bars of the shares."""
    rows = [row for row in rows if "share" in row][::-1]
    axes = figure.subplots()
    axes.barh(range(len(rows)), [100 * row["share"] for row in rows], color="#2a78c2")
    axes.set_yticks(range(len(rows)), [row["part"] for row in rows], fontsize=7)
    axes.set_xlabel("% of the measured rate (products for steps, copy for decoding)", fontsize=8)
