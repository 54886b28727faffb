"""Loading a model: seconds and peak memory, beside transformers where that is installed."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import memory_of_process
from benchmarks.process import run_python
from benchmarks.random_weights import random_checkpoint
from model.registry import find, resolve
from model.shards import read_back

LOADERS = {  # name -> (imports, call)
    "this project": ("from model import load_model as load", "load({})"),
    "transformers": (
        "from transformers import AutoModelForCausalLM as M",
        'M.from_pretrained({}, dtype="auto")',
    ),
}
TIME = """
import json, sys, time
began = time.perf_counter()
{imports}
imported = time.perf_counter()
model = {load}
now = time.perf_counter()
print(json.dumps({{"seconds": now - began, "loading": now - imported}}))
"""
# torch's own first allocations are made by loading a pocket model before; weights that are mapped
# and not read yet are touched, so that they count
MEMORY = """
import json, sys
from benchmarks.machine import memory_of_process
{imports}
{load_pocket}
before = memory_of_process("VmHWM")
model = {load}
touched = [float(p.sum()) for p in model.parameters()]
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({{"peak": (memory_of_process("VmHWM") - before) / size}}))
"""


def load_lines(model: str, repeats: int) -> Iterator[str]:
    """Seconds from the start of Python to a loaded model, and peak memory over the model's bytes.

    A local model is loaded as it is; for another name, random weights of its shape are written to a
    temporary folder, as safetensors and as .bin. transformers loads the same in turn. The least of
    `repeats` counts. Raises UserError.
    """
    memory_of_process("VmHWM")
    names = ["this project"]
    if importlib.util.find_spec("transformers"):
        names.append("transformers")
    with TemporaryDirectory() as work:
        is_local = isinstance(find(model), Path)
        folders = {"as it is": resolve(model)} if is_local else checkpoints(model, Path(work))
        yield f"{model}: from the start of Python to ready, least of {repeats}"
        yield f"{'':34}{'seconds':>9}{'of it loading':>15}{'peak / model':>14}"
        for kind, folder in folders.items():
            runs = {name: [] for name in names}
            for _ in range(repeats):
                for name in names:
                    runs[name].append(measure(TIME, name, folder))
            least = {
                name: {key: min(run[key] for run in runs[name]) for key in ("seconds", "loading")}
                for name in names
            }
            for name in names:
                peak = measure(MEMORY, name, folder)["peak"]
                seconds, loading = least[name].values()
                yield f"{f'{kind}, {name}':34}{seconds:9.2f}{loading:15.2f}{peak:14.2f}"
            if len(names) == 2:
                ours, theirs = (least[name]["seconds"] for name in names)
                yield f"{'':34}{theirs / ours:9.2f} times as fast"


def measure(code: str, loader: str, folder: Path) -> dict:
    """What a fresh Python process prints for this code. Raises UserError."""
    imports, call = LOADERS[loader]
    pocket = call.format(repr(str(resolve("pocket-llama"))))
    load = call.format(repr(str(folder)))
    *_, result = run_python(code.format(imports=imports, load=load, load_pocket=pocket))
    return result


def checkpoints(name: str, folder: Path) -> dict[str, Path]:
    """Random bfloat16 weights in the shape of a known model, as safetensors and as .bin."""
    folders = {"safetensors": folder / "safetensors", ".bin": folder / "bin"}
    random_checkpoint(name, folders["safetensors"])
    folders[".bin"].mkdir()
    shutil.copy(folders["safetensors"] / "config.json", folders[".bin"])
    weights = dict(read_back(folders["safetensors"]))
    torch.save(weights, folders[".bin"] / "pytorch_model.bin")
    return folders
