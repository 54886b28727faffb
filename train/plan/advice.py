"""How much memory tensors can have on a device, and the changes that make a run need less."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import torch

from files.errors import UserError
from train.settings import Settings

CONTEXT = 500_000_000  # bytes that CUDA takes on a card; Python and torch take about that on a CPU
NCCL = 700_000_000  # bytes that its buffers and cuBLAS's second workspace take, with processes
# share of a device's memory that fragmentation and the workspaces of kernels take
SLACK = {"cpu": 0.05, "cuda": 0.1}
RATE_SIZE, RATE_SECONDS = 2048, 1.0  # rows of the matrices of `measured_rate`, and how long
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
    """ "24GB,24GiB,24000MB,24" -> bytes of each device; a bare number is GB. Raises UserError."""
    return [parse_size(part) for part in text.split(",")]


def parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    size = float(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else 0
    if not 10**6 <= size < 10**15:
        raise UserError(
            f"--memory {text!r:.50} should be the memory of a card, such as 24GB, 24GiB or "
            "24000MB; several with commas"
        )
    return round(size)


def parse_rate(text: str) -> float:
    """ "150T" or "150e12" -> FLOPs per second. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)([GTP]?)", text.strip(), re.ASCII)
    rate = float(match[1]) * PREFIXES[match[2]] if match else 0.0
    if not 1e6 <= rate < 1e19:
        raise UserError(
            f"--flops {text!r:.50} should be floating-point operations a second, "
            "such as 150T or 150e12"
        )
    return rate


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a product of two square matrices of this dtype on this device.

    On a GPU they are larger, as 2048 rows leave its cores idle.
    """
    size = 8192 if device.type == "cuda" else RATE_SIZE
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    for _ in range(2):  # the first products load the kernels
        a @ b
    wait(device)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < RATE_SECONDS:
        for _ in range(1 if device.type == "cpu" else 10):
            a @ b
            done += 1
        wait(device)
    return done * 2 * size**3 / (time.perf_counter() - began)


def check_room(memory: list[int], kind: str = "cuda", processes: int = 1) -> None:
    """Raise UserError for a device that has no room for tensors."""
    for size in memory:
        if usable(size, kind, processes) <= 0:
            raise UserError(
                f"--memory {size / 1e6:.0f}MB leaves no room for tensors: CUDA or Python takes "
                f"{own_use(kind, processes) / 1e6:.0f} MB, and {SLACK[kind]:.0%} of it cannot be "
                "allocated"
            )


def own_use(kind: str, processes: int) -> int:
    """Bytes of a device of this kind that CUDA and NCCL, or Python, take for themselves."""
    return CONTEXT + NCCL * (kind == "cuda" and processes > 1)


def usable(memory: int, kind: str = "cuda", processes: int = 1) -> int:
    """Bytes of a device's memory that tensors can have."""
    return round(memory * (1 - SLACK[kind])) - own_use(kind, processes)


def for_training(s: Settings, length: int) -> Iterator[Settings]:
    """The run as it is, then with recomputation, then also with fewer and fewer rows at once.

    length: tokens of a row.
    """
    yield s
    if s.train.checkpoint_every != 1:
        s = replace(s, train=replace(s.train, checkpointing="block"))
        yield s
    rows = s.train.rows_at_once(length)
    while rows > 1:
        rows //= 2
        fewer = {"micro_batch_size": rows}
        if s.train.tokens_per_batch:
            fewer = {"tokens_per_batch": rows * length}
        yield replace(s, train=replace(s.train, **fewer))


def for_answers(s: Settings) -> Iterator[Settings]:
    """The run as it is, then without packed weights, then with fewer and fewer answers at once."""
    yield s
    if s.eval.decode_memory == "packed":
        s = replace(s, eval=replace(s.eval, decode_memory="plain"))
        yield s
    rows = s.eval.batch_size
    while rows > 1:
        rows //= 2
        yield replace(s, eval=replace(s.eval, batch_size=rows))


def fewer_bits(s: Settings) -> list[str]:
    """The values of `quantize` to try, the preferred one first."""
    return {"": ["", "int8", "nf4"], "nf4": ["nf4"]}.get(s.quantize, [s.quantize, "nf4"])


def options_for(s: Settings, changed: Settings) -> list[str]:
    """The options of the command line that turn the first settings into the second."""
    train = ("checkpointing", "micro_batch_size", "tokens_per_batch")
    keys = [f"train.{key}" for key in train] + ["eval.decode_memory", "eval.batch_size"]
    options = [
        f"--set {key}={attrgetter(key)(changed)}"
        for key in keys
        if attrgetter(key)(changed) != attrgetter(key)(s)
    ]
    if changed.quantize != s.quantize:
        options.append(f"--quantize {changed.quantize}")
    return options
