"""This machine: its names, the memory in use, and the highest rates it reaches."""

import ctypes
import gc
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from files.errors import UserError

STATUS = Path("/proc/self/status")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Names of the processor or card, threads, and versions of what is compared."""
    import torch

    facts: dict[str, str | int] = {"processor": processor(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        facts["card"] = torch.cuda.get_device_name(device)
    for package in ("torch", "transformers", "peft"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}


def processor() -> str:
    """The processor's name, with its matrix instructions: a name alone may be of many kinds."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = set(facts.get("flags", "").split())
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = facts.get("model name", platform.machine())
    family = f"family {facts['cpu family']}" if "cpu family" in facts else ""
    return ", ".join(filter(None, (name, family, " ".join(fast))))


# ---------------------------------------------------------------- memory


def memory_of_process(key: str) -> int:
    """Bytes of resident memory of this process, now (VmRSS) or at most (VmHWM).

    Raises UserError where the system does not say.
    """
    if not STATUS.is_file():
        raise UserError("the peak of memory is read from /proc, which this system does not have")
    return 1024 * int(STATUS.read_text().split(f"{key}:")[1].split()[0])


def cuda(device: str):
    """torch.cuda for a GPU, None for the CPU, which needs no torch."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda


def held(device: str) -> int:
    """Bytes in use now: of tensors on a GPU, of the process on the CPU."""
    card = cuda(device)
    return card.memory_allocated(device) if card else memory_of_process("VmRSS")


def give_back_memory() -> None:
    """Let glibc return what is free: later tensors would lie there and not seem to take any."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: str) -> None:
    if card := cuda(device):
        card.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS


def peak_of(device: str) -> int:
    """Most bytes in use since the start or `reset_peak`: as `held`."""
    card = cuda(device)
    return card.max_memory_allocated(device) if card else memory_of_process("VmHWM")


def reserved(device: str) -> int:
    """Most bytes that torch's allocator took from a GPU; 0 on the CPU."""
    card = cuda(device)
    return card.max_memory_reserved(device) if card else 0


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if card := cuda(device):
        card.synchronize(device)


# ---------------------------------------------------------------- rates


def rates(options: dict) -> Callable[[], dict]:
    """The work of a `Worker`: FLOPs per second of plain products, bytes per second of a copy.

    options: device, dtypes, `size` of the matrices [size, size] and `copy`, bytes.
    """
    import torch

    device = options.get("device", "cpu")

    def run() -> dict:
        found = {}
        for dtype in options["dtypes"]:
            n = options["size"]
            a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
            found[dtype] = 2 * n**3 / best(lambda a=a, b=b: a @ b, device)
        a = torch.ones(options["copy"] // 4, device=device)
        b = torch.empty_like(a)
        found["copy"] = 2 * a.nbytes / best(lambda: b.copy_(a), device)
        return found

    return run


def best(work: Callable, device: str, seconds: float = 0.5) -> float:
    """The least seconds of one call within so many seconds, after two that do not count."""
    calls = 10 if device.startswith("cuda") else 1  # between two waits
    least, began = float("inf"), 0.0
    for number in range(1000):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        now = time.perf_counter()
        if number == 1:
            began = now
        if number > 1:
            least = min(least, (now - start) / calls)
            if now - began > seconds:
                break
    return least
