"""One row of a comparison: this project and transformers + peft in turn, on the same work.

First both do a smaller form of the work in float32, where losses agree to 1e-5 and tokens are the
same; a row where they differ has no ratio. Then the work itself is timed.
"""

from dataclasses import dataclass, field

from benchmarks.process import Measured, in_turn
from benchmarks.work import options, step_flops
from files.errors import UserError

LIMITS = {"float32": 1e-5, "bfloat16": 2e-3}  # relative difference of losses
TINY = {"rows": 2, "tokens": 16, "micro": 1, "new": 2, "batch": 2}  # upper bounds of a smoke run


@dataclass(frozen=True)
class Context:
    """What the rows of a table share."""

    model: str  # a folder with weights
    data_dir: str = ""  # the paper's data; "": generated word problems
    repeats: int = 3
    peer: bool = True  # whether transformers and peft are installed
    smoke: bool = False  # tiny shapes, once, in this process
    rates: dict = field(default_factory=dict)  # benchmarks.machine.rates


@dataclass(frozen=True)
class Row:
    name: str
    kind: str  # a key of table.KINDS
    options: dict = field(default_factory=dict)  # of benchmarks/work.py, or of programs.py


class Different(UserError):
    """The two sides do not give the same result."""


def options_of(row: Row, context: Context, **changes) -> dict:
    o = options(model=context.model, **row.options | changes)
    if context.smoke:
        o |= {key: min(o[key], most) for key, most in TINY.items()}
    return o


def trained_row(row: Row, context: Context) -> dict:
    """A training step, or an epoch over rows of real lengths: equal losses, seconds, memory, and
    of a step the share of the matmul peak."""
    work = row.kind
    smaller = {"rows": 1, "micro": 1} if work == "step" else {"rows": 4}
    o = options_of(row, context)
    check = options_of(row, context, **smaller, dtype="float32")
    same_loss(measured(work, check, context, once=True), "float32")
    sides = measured(work, o, context)
    result = summary(row.name, sides) | {"equal": same_loss(sides, o["dtype"])}
    if work == "step" and (peak := context.rates.get(o["dtype"])):
        flops = step_flops(o, sides["ours"].facts["trained"])
        for side in filter(None, (result["ours"], result["peer"])):
            side["share"] = flops / side["seconds"] / peak
    return result


def decode_row(row: Row, context: Context) -> dict:
    """Greedy decoding or beams; the peer with the faster of its caches."""
    o = options_of(row, context)
    check = o | {"dtype": "float32", "new": min(o["new"], 16)}
    same_tokens(measured("decode", check, context, once=True), "float32")
    caches = ("dynamic", "static") if o["beams"] == 1 and o["batch"] <= 8 else ("dynamic",)
    sides = measured("decode", o, context, caches=caches[:1] if context.smoke else caches)
    result = summary(row.name, sides) | {"equal": same_tokens(sides, o["dtype"])}
    for side in filter(None, (result["ours"], result["peer"])):
        side["tokens_per_second"] = o["batch"] * o["new"] / side["seconds"]
    return result


def own_row(row: Row, context: Context) -> dict:
    """A quantised step or decoding beside our own bfloat16, whose weights are others."""
    work = row.options["work"]
    row = Row(row.name, row.kind, {k: v for k, v in row.options.items() if k != "work"})
    o = options_of(row, context)
    sides = {"ours": o, "bf16": o | {"quantize": ""}}
    found = in_turn(
        {name: (f"benchmarks.ours:{work}", side) for name, side in sides.items()},
        context.repeats,
        warm=int(not context.smoke),
        fresh=not context.smoke,
    )
    return summary(row.name, {"ours": found["ours"], "peer bf16": found["bf16"]}) | {
        "equal": "-", "against": "our bf16"
    }  # fmt: skip


def measured(
    work: str, o: dict, context: Context, once: bool = False, caches: tuple[str, ...] = ("dynamic",)
) -> dict[str, Measured]:
    """ours, and "peer CACHE" for each of these caches."""
    sides = {"ours": (f"benchmarks.ours:{work}", o)}
    if context.peer:
        for cache in caches:
            sides[f"peer {cache}"] = (f"benchmarks.peer:{work}", o | {"cache": cache})
    warm = 0 if once or context.smoke else 1
    return in_turn(sides, 1 if once else context.repeats, warm=warm, fresh=not context.smoke)


def summary(name: str, sides: dict[str, Measured]) -> dict:
    """A row of the table; the peer is the fastest of its sides."""
    peers = [side for key, side in sides.items() if key != "ours"]
    peer = min(peers, key=lambda side: side.seconds) if peers else None
    ours = sides["ours"]
    memory = bool(peer and ours.peak and peer.peak)
    return {
        "work": name,
        "ours": facts_of(ours),
        "peer": facts_of(peer) if peer else None,
        "sides": {key: facts_of(side) for key, side in sides.items()},
        "ratio": peer.seconds / ours.seconds if peer else None,
        "ratio_of_medians": peer.median / ours.median if peer else None,
        "memory": ours.peak / peer.peak if memory else None,
    }


def facts_of(side: Measured) -> dict:
    kept = {key: value for key, value in side.facts.items() if key in ("loss", "norm", "tokens")}
    return {"seconds": side.seconds, "median": side.median, "peak": side.peak} | kept


def same_loss(sides: dict[str, Measured], dtype: str) -> str:
    """Text of the column `equal`. Raises Different."""
    ours, *others = (side.facts["loss"] for side in sides.values())
    for other in others:
        if not abs(ours - other) <= LIMITS[dtype] * abs(other):
            raise Different(f"the losses differ in {dtype}: {ours:.6f} and {other:.6f}")
    return "loss" if others else "-"


def same_tokens(sides: dict[str, Measured], dtype: str) -> str:
    """The same of tokens, which only float32 must have in common. Raises Different."""
    ours, *others = (side.facts["rows"] for side in sides.values())
    equal = "-"
    for other in others:
        same = sum(a == b for a, b in zip(ours, other, strict=True))
        if dtype == "float32" and same < len(ours):
            raise Different(f"{len(ours) - same} of {len(ours)} rows have other tokens in float32")
        equal = f"tokens ({same}/{len(ours)} in {dtype})"
    return equal
