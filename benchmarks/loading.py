"""Measurements by script: each prints figures and, where there is one, the ratio to a peer measured in turn in the same job."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from adapters import attach, use
from benchmarks.random_weights import random_checkpoint
from eval.generate import generate
from files.errors import UserError
from model.load import load_model
from model.quantize import STORED_AS
from model.registry import find, resolve
from model.shards import read_back

ROOT = Path(__file__).parent.parent

# What each process runs: from nothing to a model that is ready. `root`, `pocket` and `folder` are its arguments.
TIME = """
import json, sys, time
began = time.perf_counter()
root, pocket, folder = sys.argv[1:]
{imports}
imported = time.perf_counter()
model = {load}(folder{more})
print(json.dumps({{"seconds": time.perf_counter() - began, "loading": time.perf_counter() - imported}}))
"""
MEMORY = """
import json, sys
root, pocket, folder = sys.argv[1:]
{imports}
def peak(): return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
{load}(pocket{more})  # what torch allocates once for itself
before = peak()
model = {load}(folder{more})
touched = [float(p.sum()) for p in model.parameters()]  # a model that is mapped and not yet read would count as nothing
print(json.dumps({{"peak": (peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters())}}))
"""
OURS = {
    "imports": "sys.path.insert(0, root); from model import load_model",
    "load": "load_model",
    "more": "",
}
PEER = {
    "imports": "from transformers import AutoModelForCausalLM",
    "load": "AutoModelForCausalLM.from_pretrained",
    "more": ', dtype="auto"',
}


def load_lines(name: str, repeats: int) -> list[str]:
    """Lines of text: seconds from the start of Python to a model that is ready, and the peak of memory while loading over the bytes of the model.

    A local model is loaded as it is; for another name, random weights of its shape are written to a temporary folder first, as
    safetensors and as torch's .bin. transformers, where it is installed, does the same in turn. The least of `repeats` counts.
    """
    if not Path("/proc/self/status").is_file():
        raise UserError("the peak of memory is read from /proc, which this system has not")
    with tempfile.TemporaryDirectory() as work:
        found = find(name)
        folders = (
            {"as it is": resolve(name)}
            if isinstance(found, Path)
            else random_checkpoints(name, Path(work))
        )
        lines = [
            f"{name}: from the start of Python to ready, least of {repeats}",
            f"{'':34}{'seconds':>9}{'of it loading':>15}{'peak / model':>14}",
        ]
        for kind, folder in folders.items():
            who = {"this project": OURS} | (
                {"transformers": PEER} if importlib.util.find_spec("transformers") else {}
            )
            times = {name: [] for name in who}
            for _ in range(repeats):
                for peer, code in who.items():
                    times[peer].append(measure(TIME.format(**code), folder))
            for peer, code in who.items():
                seconds, loading = (
                    min(run[key] for run in times[peer]) for key in ("seconds", "loading")
                )
                peak = measure(MEMORY.format(**code), folder)["peak"]
                lines.append(f"{kind + ', ' + peer:34}{seconds:9.2f}{loading:15.2f}{peak:14.2f}")
            if len(who) == 2:
                ours, theirs = (min(run["seconds"] for run in times[name]) for name in who)
                lines.append(f"{'':34}{theirs / ours:9.2f} times as fast")
    return lines


def measure(code: str, folder: Path) -> dict:
    """What a fresh Python prints for this code."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(resolve("pocket-llama")), str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(
            f"the measurement ended with: {last.removeprefix('model.errors.UserError: ')}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def random_checkpoints(name: str, folder: Path) -> dict[str, Path]:
    """Random bfloat16 weights in the shape of a known model, once as safetensors and once as .bin."""
    made = {"safetensors": folder / "safetensors", ".bin": folder / "bin"}
    random_checkpoint(name, made["safetensors"])
    made[".bin"].mkdir()
    shutil.copy(made["safetensors"] / "config.json", made[".bin"])
    torch.save(dict(read_back(made["safetensors"])), made[".bin"] / "pytorch_model.bin")
    return made


def quantize_lines(name: str, repeats: int) -> list[str]:
    """Lines of text: bytes, seconds of a LoRA step of 4 x 128 tokens (forward and backward) and tokens a second of greedy decoding in one row, of the
    plain model and of its quantised forms, in turn, in one process; the least of `repeats` counts."""
    ids = torch.randint(5, 500, (4, 128), generator=torch.Generator().manual_seed(0))
    models, seconds = {}, {}
    for how in ("", *STORED_AS):
        models[how] = load_model(name, quantize=how)
        attach(models[how], "lora")
    for how, model in [*models.items()] * repeats:
        use(model, ["default"])
        began = time.perf_counter()
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        step = time.perf_counter()
        use(model, [])
        new = generate(model, ids[:1, :16], max_new_tokens=32)[0]
        found = step - began, (time.perf_counter() - step) / len(new)
        seconds[how] = tuple(map(min, found, seconds.get(how, found)))
    lines = [
        f"{name}: least of {repeats}",
        f"{'':12}{'bytes':>15}{'of blocks':>15}{'step, s':>10}{'tokens/s':>10}",
    ]
    for how, model in models.items():
        sizes = [
            sum(
                t.numel() * t.element_size()
                for path, t in (*part.named_parameters(), *part.named_buffers())
                if ".adapters." not in path
            )
            for part in (model, model.blocks)
        ]
        plain = str(model.dtype).removeprefix("torch.")
        lines.append(
            f"{how or plain:12}{sizes[0]:15,}{sizes[1]:15,}{seconds[how][0]:10.2f}{1 / seconds[how][1]:10.1f}"
        )
    return lines
