"""Whether a run fits into the memory of the cards it is given, and what to change if it does not."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from files.errors import UserError
from train.settings import Settings

CONTEXT = 500_000_000  # bytes that CUDA and its libraries take on a card before the first tensor; about that of Python and torch on a CPU
SLACK = 0.05  # of a device's memory, for what an allocator cannot hand out again: blocks of other sizes, workspaces of the kernels
UNITS = {
    "": 10**9,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
PREFIXES = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15}


def parse_memory(text: str) -> list[int]:
    """ "24GB,24GiB,24000MB,24" -> bytes of each device; a bare number means GB. Raises UserError."""
    return [parse_size(part) for part in text.split(",")]


def parse_size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    size = float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else 0
    if not 10**6 <= size < 10**15:
        raise UserError(
            f"--memory {text!r:.50} should be the memory of a card, such as 24GB, 24GiB or 24000MB; several with commas"
        )
    return round(size)


def parse_rate(text: str) -> float:
    """ "150T" or "150e12" -> floating-point operations a second. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)([GTP]?)", text.strip(), re.ASCII)
    rate = float(found[1]) * PREFIXES[found[2]] if found else 0.0
    if not 1e6 <= rate < 1e19:
        raise UserError(
            f"--flops {text!r:.50} should be floating-point operations a second, such as 150T or 150e12"
        )
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


def check_room(memory: list[int]) -> None:
    """Raise UserError for a device that has no room for tensors."""
    for one in memory:
        if usable(one) <= 0:
            raise UserError(
                f"--memory {one / 1e6:.0f}MB is less than what CUDA or Python takes for itself, {CONTEXT / 1e6:.0f} MB"
            )


def usable(memory: int) -> int:
    """Bytes of a device's memory that tensors can have."""
    return round(memory * (1 - SLACK)) - CONTEXT


def for_training(made: Settings) -> Iterator[Settings]:
    """The run as it is, then with recomputation, then with fewer and fewer rows at once besides: each needs less memory than the one before."""
    yield made
    if made.train.checkpoint_every != 1:
        made = replace(made, train=replace(made.train, checkpointing="block"))
        yield made
    rows = min(made.train.micro_batch_size, made.train.batch_size)
    while rows > 1:
        rows //= 2
        yield replace(made, train=replace(made.train, micro_batch_size=rows))


def for_answers(made: Settings) -> Iterator[Settings]:
    """The run as it is, then with fewer and fewer answers at once."""
    yield made
    rows = made.eval.batch_size
    while rows > 1:
        rows //= 2
        yield replace(made, eval=replace(made.eval, batch_size=rows))


def fewer_bits(made: Settings) -> list[str]:
    """How the weights may be stored, the way that is chosen first."""
    return {"": ["", "int8", "nf4"], "nf4": ["nf4"]}.get(made.quantize, [made.quantize, "nf4"])


def options_for(made: Settings, changed: Settings) -> list[str]:
    """The options of the command line that make the second of the first."""
    words = [
        f"--set train.{key}={getattr(changed.train, key)}"
        for key in ("checkpointing", "micro_batch_size")
        if getattr(changed.train, key) != getattr(made.train, key)
    ]
    if changed.eval.batch_size != made.eval.batch_size:
        words.append(f"--set eval.batch_size={changed.eval.batch_size}")
    if changed.quantize != made.quantize:
        words.append(f"--quantize {changed.quantize}")
    return words
