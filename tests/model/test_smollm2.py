"""A published 135M checkpoint, where its folder is at hand: SMOLLM2=FOLDER python -m pytest
tests/model/test_smollm2.py
"""

import os

import pytest
import torch

from adapters import attach, load_adapter, parameters, save_adapter
from adapters.config import presets
from eval.generate import generate, left_pad
from model import load_model, load_tokenizer

FOLDER = os.environ.get("SMOLLM2", "")
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "Once upon a time",
    "2 + 2 =",
    "The three primary colours are",
    "In 1969,",
    "My favourite food is",
    "The largest planet",
    "To be or not to be,",
]


@pytest.mark.skipif(not FOLDER, reason="SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
def test_ten_prompts_continue_as_in_transformers_alone_and_in_a_batch():
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_model(FOLDER, dtype=torch.float32), load_tokenizer(FOLDER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert ids == [
        transformers.AutoTokenizer.from_pretrained(FOLDER)(prompt)["input_ids"]
        for prompt in PROMPTS
    ]
    batch = generate(
        model,
        *left_pad(ids, tokenizer.pad_id, "cpu"),
        max_new_tokens=32,
        stop_ids=[tokenizer.eos_id],
    )
    for row, together in zip(ids, batch, strict=True):
        alone = generate(
            model, torch.tensor([row]), max_new_tokens=32, stop_ids=[tokenizer.eos_id]
        )[0]
        mask = torch.ones(1, len(row), dtype=torch.long)
        expected = theirs.generate(
            torch.tensor([row]),
            attention_mask=mask,
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
        )[0, len(row) :].tolist()
        if expected[-1] == tokenizer.eos_id:
            expected.pop()
        assert alone == together == expected
    assert tokenizer.decode(batch[0]).startswith(" Paris")


@pytest.mark.skipif(not FOLDER, reason="SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
@pytest.mark.parametrize(
    "preset", [name for name, table in presets().items() if table.get("kind") != "fusion"]
)
def test_every_preset_on_real_weights(tmp_path, preset):
    """In its full size, bfloat16: a few steps change the loss, and what is saved comes back to
    the bit.
    """
    tokenizer = load_tokenizer(FOLDER)
    ids = torch.tensor(
        [
            tokenizer.encode(
                "Question: Tom has 3 pens and buys 4 more. How many pens has he? Answer: 3 + 4 = 7."
            )
        ]
    )
    model = load_model(FOLDER, dtype=torch.bfloat16)
    torch.manual_seed(0)
    attach(model, preset)
    optimizer = torch.optim.AdamW(parameters(model), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] or preset in (
        "adalora",
        "vera",
        "p-tuning-lstm",
    )  # too slow for four steps
    save_adapter(model, tmp_path / "saved")
    other = load_model(FOLDER, dtype=torch.bfloat16)
    load_adapter(other, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(other(ids), model(ids))
