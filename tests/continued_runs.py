"""Runs that continue a saved adapter."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_sums

import run as command_line
from adapters import load_adapter
from model import load_model

FAST = "--set eval.before=false --set eval.max_new_tokens=2 --items 1".split()
FAST += "--set train.batch_size=4".split()
STILL = ("--max-steps", "1", "--set", "train.learning_rate=1e-12")  # one step that moves nothing
IDS = torch.tensor([[5, 9, 2, 7, 40, 41]])
WEIGHTS = "adapter/adapter_model.safetensors"


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


def other_rows(path: Path) -> Path:
    rows = [
        {
            "instruction": f"A box holds {n} eggs. How many eggs do 3 boxes hold?",
            "output": f"3 * {n} = {3 * n}. The answer is {3 * n}.",
            "answer": str(3 * n),
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run of twelve steps on forty rows, with a prompt of its own."""
    folder = tmp_path_factory.mktemp("first")
    data = write_sums(folder / "sums.json")
    assert (
        main(
            "--adapter",
            "lora",
            "--data",
            data,
            *"--template plain --max-steps 12".split(),
            *FAST,
            "--out",
            folder / "run",
        )
        == 0
    )
    return folder / "run"


def go_on(source: Path, out: Path, *words) -> Path:
    assert main("--continue", source, *words, *FAST, "--out", out) == 0
    return out


def run_section(folder: Path) -> dict:
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())["llm_adapters"][
        "run"
    ]


def logits(folder: Path, model: str = "pocket-llama", dtype=torch.float32) -> torch.Tensor:
    loaded = load_model(model, dtype=dtype)
    load_adapter(loaded, folder)
    with torch.no_grad():
        return loaded(IDS)
