"""Whether a run fits into the memory of the cards it is given, and what to change if it does not."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from model.errors import UserError
from train.settings import Settings

CONTEXT = 500_000_000  # bytes that CUDA and its libraries take on a card before the first tensor; about that of Python and torch on a CPU
SLACK = 0.05  # of a device's memory, for what an allocator cannot hand out again: blocks of other sizes, workspaces of the kernels
UNITS = {"": 10**9, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
PREFIXES = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15}


def parse_memory(text: str) -> list[int]:
    """"24GB,24GiB,24000MB,24" -> bytes of each device; a bare number means GB. Raises UserError."""
    return [parse_size(part) for part in text.split(",")]


def parse_size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    size = float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else 0
    if not 10**6 <= size < 10**15:
        raise UserError(f"--memory {text!r:.50} should be the memory of a card, such as 24GB, 24GiB or 24000MB; several with commas")
    return round(size)


def parse_rate(text: str) -> float:
    """"150T" or "150e12" -> floating-point operations a second. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)([GTP]?)", text.strip(), re.ASCII)
    rate = float(found[1]) * PREFIXES[found[2]] if found else 0.0
    if not 1e6 <= rate < 1e19:
        raise UserError(f"--flops {text!r:.50} should be floating-point operations a second, such as 150T or 150e12")
    return rate


def measured_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a plain matrix product [2048, 2048] x [2048, 2048] in this dtype on this device."""
    size = 2048
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(2):  # the first ones wake up the kernels
        a @ b
    wait()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(1 if device.type == "cpu" else 50):
            a @ b
            done += 1
        wait()
    return done * 2 * size**3 / (time.perf_counter() - began)


def usable(memory: int) -> int:
    """Bytes of a device's memory that tensors can have."""
    return round(memory * (1 - SLACK)) - CONTEXT


@dataclass(frozen=True)
class Change:
    """What to add to the command line, and the run that comes of it."""

    words: tuple[str, ...]
    made: Settings
    more_cards: bool = False  # a second card like the first


def changes(made: Settings) -> Iterator[Change]:
    """What may help, the cheapest first: recomputation, fewer rows at once, weights in fewer bits, a second card; each on top of those before it."""
    words: dict[str, str] = {}  # setting -> how to say it

    def change(key: str, value: object, **fields) -> Change:
        nonlocal made
        words[key] = f"--quantize {value}" if key == "quantize" else f"--set {key}={value}"
        made = replace(made, **fields)
        return Change(tuple(words.values()), made)

    if made.train.checkpoint_every != 1:
        yield change("train.checkpointing", "block", train=replace(made.train, checkpointing="block"))
    while made.train.micro_batch_size > 1:
        rows = made.train.micro_batch_size // 2
        yield change("train.micro_batch_size", rows, train=replace(made.train, micro_batch_size=rows))
    while made.eval.batch_size > 1:
        rows = made.eval.batch_size // 2
        yield change("eval.batch_size", rows, eval=replace(made.eval, batch_size=rows))
    for how in {"": ["int8", "nf4"], "nf4": []}.get(made.quantize, ["nf4"]):
        yield change("quantize", how, quantize=how)
    yield Change(tuple(words.values()), made, more_cards=True)


def first_that_fits(made: Settings, fits: Callable[[Change], bool]) -> Change | None:
    """The first of the changes with which the run fits, found by planning it."""
    return next((change for change in changes(made) if fits(change)), None)
