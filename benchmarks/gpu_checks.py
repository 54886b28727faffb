"""The parts of `benchmark --case gpu` that check results: each a piece of work for a `Worker`."""

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from subprocess import PIPE, STDOUT

import torch

from adapters import attach, named_parameters
from benchmarks.machine import reset_peak
from benchmarks.process import ROOT
from benchmarks.random_weights import random_model
from benchmarks.training import random_rows, timed_training
from eval.generate import generate, left_pad
from files.typed import from_table
from model.devices import split
from model.language import LanguageModel
from train.loss import summed_loss
from train.settings import Train

Run = Callable[[], dict]
# relative difference of losses and of all gradients, CUDA beside the CPU, by dtype
LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (1e-2, 0.1), "float16": (2e-3, 0.05)}


def suite(o: dict) -> Run:
    """The suite's tests that need a card, by pytest; with `collect` they are only counted."""

    def run() -> dict:
        if importlib.util.find_spec("pytest") is None or not (ROOT / "tests").is_dir():
            return {"result": "not run: pytest or the folder tests/ is missing"}
        words = ["-q", "-k", o["keyword"], "-p", "no:cacheprovider", *o["words"]]
        command = [sys.executable, "-m", "pytest", *words]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=PIPE, stderr=STDOUT, timeout=o["seconds"], check=False
            )
            told = done.stdout.decode()
            last = (told.strip().splitlines() or ["no output"])[-1].strip("= ")
        except subprocess.TimeoutExpired as late:
            told = (late.stdout or b"").decode()
            last = f"stopped after {o['seconds']} s"
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE)
        return {"result": last, "failed": failed, "output": told[-4000:]}

    return run


def parity(o: dict) -> Run:
    """The device beside the CPU: loss, gradients and, in float32, greedy tokens.

    options: models (name, layers), dtypes, tokens, device. Rows of different lengths.
    """

    def run() -> dict:
        worst, wrong = {}, []
        for (name, layers), dtype in ((m, d) for m in o["models"] for d in o["dtypes"]):
            ours, cpu = (once(name, layers, dtype, o["tokens"], d) for d in (o["device"], "cpu"))
            loss = abs(ours[0] - cpu[0]) / abs(cpu[0])
            gradient = float((ours[1] - cpu[1]).norm() / cpu[1].norm())
            before = worst.get(dtype, (0.0, 0.0))
            worst[dtype] = max(before[0], loss), max(before[1], gradient)
            most = LIMITS[dtype]
            if not (loss <= most[0] and gradient <= most[1]):
                wrong.append(f"{name} {dtype}: loss {loss:.1e}, gradients {gradient:.1e}")
            if dtype == "float32" and ours[2] != cpu[2]:
                wrong.append(f"{name}: other tokens")
        text = "; ".join(f"{d}: loss {a:.0e}, gradients {b:.0e}" for d, (a, b) in worst.items())
        return {"result": f"largest difference {text}", "wrong": wrong}

    return run


def once(name: str, layers: int, dtype: str, tokens: int, device: str):
    """(loss, all gradients in one float32 vector, new tokens) of a model with a LoRA."""
    # the weights are made on the CPU, as a card draws other numbers
    model = random_model(name, getattr(torch, dtype), layers=layers)
    torch.manual_seed(0)
    attach(model, "lora", r=4)
    for parameter in named_parameters(model).values():
        parameter.data.normal_(std=0.05)
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 500, (3, tokens), generator=generator)
    weights = torch.ones(ids.shape)
    weights[1, tokens // 2 :], weights[2, : tokens // 3] = 0, 0
    loss = summed_loss(model.train(), ids.to(device), weights.to(device)) / weights[:, 1:].sum()
    loss.backward()
    gradients = [p.grad.flatten().float().cpu() for p in named_parameters(model).values()]
    new = generate(model.eval(), ids[:2, : min(tokens, 40)].to(device), max_new_tokens=8)
    return float(loss), torch.cat(gradients), new


def graphs(o: dict) -> Run:
    """Greedy tokens in float32 with CUDA graphs and without, of prompts of different lengths."""

    def run() -> dict:
        wrong = []
        for name, layers in o["models"]:
            model = random_model(name, torch.float32, device=o["device"], layers=layers)
            generator = torch.Generator().manual_seed(0)
            rows = [
                torch.randint(5, 500, (o["tokens"] // n,), generator=generator).tolist()
                for n in (1, 2, 3)
            ]
            found = []
            for model.graphs in (True, False):
                ids, mask = left_pad(rows, 0, o["device"])
                found.append(generate(model, ids, mask, o["new"]))
            wrong += [f"{name}: other tokens"] if found[0] != found[1] else []
        return {"result": f"{len(o['models'])} models compared", "wrong": wrong}

    return run


def trained(o: dict) -> Run:
    """Steps of the training loop: seconds of one, losses, and a hash of the trained adapter.

    options: model, layers, dtype, adapter, rows, tokens, steps, device; `train`, a table of
    settings; `devices` to split the layers over; `weights`, the device that draws them.
    """

    def run() -> dict:
        dtype, made_on = getattr(torch, o["dtype"]), o.get("weights", o["device"])
        model = random_model(o["model"], dtype, device=made_on, layers=o["layers"])
        if "devices" in o:
            half = len(model.blocks) // 2
            split(model, list(map(torch.device, o["devices"])), [half, len(model.blocks) - half])
        else:
            model.to(o["device"])
        torch.manual_seed(0)
        attach(model, o["adapter"])
        reset_peak(o["device"])
        return loop(model, o)

    return run


def loop(model: LanguageModel, o: dict) -> dict:
    table = {
        "batch_size": o["rows"],
        "micro_batch_size": max(1, o["rows"] // 2) if "devices" in o else o["rows"],
        "max_steps": o["steps"],
        "warmup_steps": 0,
        "save_every": 10**6,
        "learning_rate": 1e-3,
    }
    s = from_table(Train, table | o.get("train", {}), "the benchmark")
    entries, spent = timed_training(model, random_rows(model, o["rows"], o["tokens"]), s)
    digest = hashlib.sha256()
    for parameter in named_parameters(model).values():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return {
        "step": min(spent[len(spent) // 3 :]),
        "losses": [entry["loss"] for entry in entries],
        "skipped": sum(entry["skipped"] for entry in entries),
        "adapter": digest.hexdigest()[:16],
    }


def scaled(o: dict) -> Run:
    """float16 with its loss scaling: steps skipped, and losses beside bfloat16's."""
    half, other = (trained(o | {"dtype": dtype}) for dtype in ("float16", "bfloat16"))

    def run() -> dict:
        a, b = half(), other()
        taken = [loss for loss in a["losses"] if loss is not None]
        wrong = []
        if not taken or a["skipped"] > 16:  # from 2^16 down to 1
            wrong = [f"{a['skipped']} of {o['steps']} steps were skipped"]
        elif abs(taken[0] - b["losses"][0]) > 0.02 * b["losses"][0]:
            wrong = [f"first loss {taken[0]:.4f}, in bfloat16 {b['losses'][0]:.4f}"]
        elif not taken[-1] < taken[0]:
            wrong = [f"the loss does not fall: {taken[0]:.4f} to {taken[-1]:.4f}"]
        text = f"{a['skipped']} of {o['steps']} steps skipped"
        return {"step": a["step"], "result": text, "wrong": wrong}

    return run


def repeated(o: dict) -> Run:
    """The same run twice: are the trained adapters equal to the bit?"""
    work = trained(o)

    def run() -> dict:
        a, b = work(), work()
        same = a["adapter"] == b["adapter"]
        promised = o.get("train", {}).get("deterministic", False)
        result = "equal to the bit" if same else "not equal to the bit"
        wrong = [result] if promised and not same else []
        return {"step": min(a["step"], b["step"]), "result": result, "wrong": wrong}

    return run


def alike(o: dict) -> Run:
    """A run with `train` or `devices` beside the plain one: equal losses, and both times."""
    plain = trained({key: value for key, value in o.items() if key not in ("train", "devices")})
    other = trained(o)

    def run() -> dict:
        a, b = plain(), other()
        far = max(abs(x - y) / abs(x) for x, y in zip(a["losses"], b["losses"], strict=True))
        wrong = [f"losses differ by {far:.1e}"] if far > LIMITS[o["dtype"]][0] else []
        text = f"losses within {far:.0e}; without it {a['step']:.4g} s"
        return {"step": b["step"], "result": text, "wrong": wrong}

    return run
