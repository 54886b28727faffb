"""Short training runs on random rows."""

import torch

from adapters import attach, named_parameters, parameters
from data.batches import Example, collate, micro_batches
from model import load_model
from train import loss
from train.loop import train
from train.settings import Train

S = Train(
    max_steps=8,
    batch_size=6,
    micro_batch_size=2,
    learning_rate=0.02,
    warmup_steps=2,
    save_every=100,
)


def examples(count: int = 20) -> list[Example]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        n = int(torch.randint(4, 12, (), generator=generator))
        made.append(
            Example(
                torch.randint(3, 61, (n,), generator=generator).tolist(),
                [0.0, 0.0, 0.0] + [1.0] * (n - 3),
            )
        )
    return made


def model_with(folder, preset="parallel", device="cpu", dtype=None, **changes):
    torch.manual_seed(0)
    model = load_model(str(folder), device=device, dtype=dtype)
    attach(model, preset, **({"size": 4} if preset != "lora" else {"r": 2}) | changes)
    return model


def run(model, folder, s=S, **more):
    entries = []
    arguments = {
        "seed": 1,
        "pad_id": 0,
        "folder": folder,
        "fingerprints": {"base model": "b"},
        "log": entries.append,
    } | more
    outcome = train(model, named_parameters(model), examples(), s, **arguments)
    return outcome, entries


def state(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters(model)]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- loss and batches
def gradients(model, s: Train) -> list[torch.Tensor]:
    rows = examples(6)
    weight = sum(sum(row.weights[1:]) for row in rows)
    for part in micro_batches(rows, s.micro_batch_size):
        (loss.summed_loss(model, *collate(part, 0, "cpu")) / weight).backward()
    found = [parameter.grad.clone() for parameter in parameters(model)]
    model.zero_grad()
    return found
