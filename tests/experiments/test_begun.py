"""A run makes the start of EVA from its own first rows, and writes a LoRA."""

import json

import pytest
import torch

from adapters import attach, begin, named_parameters
from data.batches import collate, epoch_order
from experiments.prepare import prepare
from files.errors import UserError
from model import load_model
from train.loop import train
from train.parallel import SINGLE
from train.settings import Train, settings


def test_a_run_begins_with_the_rows_of_its_first_steps(tmp_path):
    data = tmp_path / "sums.json"
    rows = [{"instruction": f"{n} + 4?", "output": f"It is {n + 4}."} for n in range(40)]
    data.write_text(json.dumps(rows))
    options = {"model": "pocket-llama", "data": str(data), "test_share": 0.0, "seed": 3}
    options |= {"adapter": {"preset": "eva", "r": 2, "rows": 6}}
    job = prepare(settings(options=options, sets=["train.batch_size=4"]), SINGLE)
    assert (job.config.kind, job.preset) == ("lora", "eva")
    batches = []
    for numbers in epoch_order(list(map(len, job.examples)), 4, 3, 0)[:2]:
        ordered = sorted((job.examples[n] for n in numbers), key=len, reverse=True)
        ids, weights, _ = collate(ordered[: 6 - 4 * len(batches)], 0, "cpu")
        batches.append((ids, weights > 0))
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "eva", r=2)
    begin(model, batches)
    expected = {name: one for name, one in named_parameters(model).items() if "lora_A" in name}
    assert len(expected) == 8
    for name, one in expected.items():
        torch.testing.assert_close(job.trained[name], one, rtol=1e-4, atol=1e-5)
    attach(model, "eva", name="other")
    with pytest.raises(UserError, match="'other' has no EVA start yet"):
        train(model, {}, job.examples, Train(), folder=tmp_path)
