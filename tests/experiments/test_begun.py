"""A run makes the start of EVA from its own first rows, and writes a LoRA."""

import json

import pytest
import torch

from adapters import attach, begin, named_parameters
from data.batches import epoch_order
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
    first, second = epoch_order(list(map(len, job.examples)), 4, 3, 0)[:2]
    second = sorted(second, key=lambda n: -len(job.examples[n]))[:2]  # a micro-batch's longest
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "eva", r=2)
    chosen = [job.examples[number] for number in (*first, *second)]
    begin(
        model,
        [
            (torch.tensor([row.ids]), torch.tensor([row.weights]) > 0)
            for row in sorted(chosen[:4], key=len, reverse=True) + chosen[4:]
        ],
    )
    expected = named_parameters(model)
    assert {name: one.shape for name, one in job.trained.items()} == {
        name: one.shape for name, one in expected.items()
    }
    for name, one in job.trained.items():
        if name.endswith("lora_A"):
            x = torch.linalg.qr(one.T)[0].T @ torch.linalg.qr(expected[name].T)[0]
            torch.testing.assert_close(x.norm(), torch.tensor(len(one) ** 0.5), rtol=0.05, atol=0)
    with pytest.raises(UserError, match="has no EVA start yet"):
        attach(model, "eva", name="other")
        train(model, {}, job.examples, Train(), folder=tmp_path)
