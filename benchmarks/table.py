"""The table of `run.py benchmark`: this project beside transformers + peft on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compare import Context, Different, Row, decode_row, own_row, trained_row
from benchmarks.machine import machine
from benchmarks.peer import missing
from benchmarks.process import in_turn
from benchmarks.programs import evaluate_row, help_row, start_row
from benchmarks.random_weights import random_checkpoint
from benchmarks.report import Report, is_wanted, megabytes, percent, ratio, seconds
from files.errors import UserError
from model.registry import POCKET, find, resolve
from model.shards import copy_tokenizer

KINDS: dict[str, Callable[[Row, Context], dict]] = {
    "step": trained_row,
    "epoch": trained_row,
    "decode": decode_row,
    "own": own_row,
    "evaluate": evaluate_row,
    "start": start_row,
    "help": help_row,
}
BLOCK = {"checkpointing": True}
LONG = {"rows": 1, "tokens": 1024, "micro": 1}
GREEDY = {"adapter": "", "tokens": 100}
OWN_STEP, OWN_DECODE = {"work": "step", "tokens": 128}, {"work": "decode", "new": 32, **GREEDY}
PAPER = {"batch": 1, "beams": 4, "use_cache": False, "items": 1}
PLAIN = {"batch": 8, "beams": 1, "use_cache": True, "items": 10}
ROWS = (
    Row("LoRA step bf16 4 x 256", "step"),
    Row("parallel step bf16 4 x 256", "step", {"adapter": "parallel"}),
    Row("LoRA step bf16 4 x 256 checkpointing", "step", BLOCK),
    Row("parallel step bf16 4 x 256 checkpointing", "step", {"adapter": "parallel", **BLOCK}),
    Row("LoRA step bf16 1 x 1024", "step", LONG),
    Row("LoRA step fp32 4 x 256", "step", {"dtype": "float32"}),
    Row("epoch of real lengths bf16", "epoch", {"rows": 32}),
    Row("greedy bf16 batch 1", "decode", GREEDY),
    Row("greedy bf16 batch 8", "decode", {"batch": 8, **GREEDY}),
    Row("greedy bf16 batch 32", "decode", {"batch": 32, **GREEDY}),
    Row("4 beams bf16", "decode", {"beams": 4, **GREEDY}),
    Row(
        "evaluate 10 problems a set",
        "evaluate",
        {"items": 10, "new": 64, "ours": {"batch": 8, "beams": 1}, "peer": PLAIN},
    ),
    Row(
        "evaluate as the paper (4 beams; peer: no cache, batch 1)",
        "evaluate",
        {"items": 10, "new": 64, "ours": {"batch": 8, "beams": 4}, "peer": PAPER},
    ),
    Row("int8 step 4 x 128", "own", {"quantize": "int8", **OWN_STEP}),
    Row("int8 decode batch 1", "own", {"quantize": "int8", **OWN_DECODE}),
    Row("nf4 decode batch 1", "own", {"quantize": "nf4", **OWN_DECODE}),
    Row("start to weights ready", "start"),
    Row("run.py --help", "help"),
)
HEADS = (
    "work", "ours, s", "peer, s", "peer / ours", "MB ours", "MB peer", "ours / peer",
    "share of peak", "peer's", "equal",
)  # fmt: skip


def table_lines(
    model: str, data_dir: str, only: str, out: str, repeats: int, smoke: bool
) -> Iterator[str]:
    """Each row as it is measured, then the table. Raises UserError at the end if rows differ.

    model: a folder or a pocket model is taken as it is; of another name random bfloat16 weights of
    its shape are written to a temporary folder. only: rows whose name holds one of these words,
    separated by commas. smoke: pocket-llama, tiny shapes, once, in this process.
    """
    wanted = [row for row in ROWS if is_wanted(row.name, only)]
    if not wanted:
        raise UserError(f"--only {only!r:.60} is in no row: {'; '.join(r.name for r in ROWS)}")
    without = missing()
    with TemporaryDirectory() as work:
        folder = folder_of("pocket-llama" if smoke else model, Path(work))
        dtypes = ["float32", "bfloat16"]
        size = {"size": 64, "copy": 2**16} if smoke else {"size": 2048, "copy": 2**28}
        work_of_rates = ("benchmarks.machine:rates", {"dtypes": dtypes, **size})
        rates = in_turn({"rates": work_of_rates}, 1, warm=0, fresh=not smoke)["rates"].facts
        context = Context(str(folder), data_dir, 1 if smoke else repeats, not without, smoke, rates)
        facts = machine() | {
            "model": "pocket-llama" if smoke else model,
            "fp32 peak": f"{rates['float32'] / 1e9:.0f} GFLOP/s",
            "bf16 peak": f"{rates['bfloat16'] / 1e9:.0f} GFLOP/s",
            "copy": f"{rates['copy'] / 1e9:.1f} GB/s",
        }
        report = Report("This project beside transformers + peft", out, facts, HEADS, cells)
        yield report.machine_line()
        if without:
            report.note(without)
        for row in wanted:
            yield report.add(measure(row, context))
    report.note(f"seconds: the least of {context.repeats}, in turn; peer / ours: of the minima")
    report.plot(draw)
    yield from report.lines()
    failed = [row["work"] for row in report.rows if "failed" in row]
    if failed:
        raise UserError(f"{len(failed)} rows have no figures, see `equal`: {'; '.join(failed)}")


def folder_of(name: str, work: Path) -> Path:
    """A folder with weights and a tokenizer."""
    if isinstance(find(name), Path):
        return resolve(name)
    random_checkpoint(name, work / "model")
    copy_tokenizer(POCKET / "llama", work / "model")
    return work / "model"


def measure(row: Row, context: Context) -> dict:
    try:
        return KINDS[row.kind](row, context)
    except Different as error:
        return {"work": row.name, "failed": f"NO: {error}"}
    except UserError as error:
        return {"work": row.name, "failed": f"not measured: {error}"}


def cells(row: dict) -> list[str]:
    if "failed" in row:
        return [row["work"], *["-"] * (len(HEADS) - 2), row["failed"]]
    ours, peer = row["ours"], row["peer"] or {}
    return [
        row["work"] + (f" (peer: {row['against']})" if "against" in row else ""),
        seconds(ours["seconds"]),
        seconds(peer.get("seconds")),
        ratio(row["ratio"]),
        megabytes(ours["peak"]),
        megabytes(peer.get("peak")),
        ratio(row["memory"]),
        percent(ours.get("share")),
        percent(peer.get("share")),
        row["equal"],
    ]


def draw(figure, rows: list[dict]) -> None:
    """Bars of the ratios of time and memory."""
    rows = [row for row in rows if row.get("ratio")][::-1]
    left, right = figure.subplots(1, 2, sharey=True)
    names, places = [row["work"] for row in rows], range(len(rows))
    left.barh(places, [row["ratio"] for row in rows], color="#2a78c2")
    left.set_yticks(places, names, fontsize=7)
    left.set_title("peer's seconds / ours", fontsize=9)
    right.barh(places, [row["memory"] or 0 for row in rows], color="#c2762a")
    right.set_title("our memory / the peer's", fontsize=9)
    for axes in (left, right):
        axes.axvline(1, color="black", linewidth=0.8)
