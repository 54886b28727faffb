"""The work of a comparison, defined once: both sides get the same tokens and the same start.

Options of a piece of work, with their defaults: DEFAULTS. A side is a function `setup(options)`
that returns `run() -> facts` (benchmarks/process.py); benchmarks/ours.py has this project's,
benchmarks/peer.py those of transformers and peft.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import synchronize
from benchmarks.random_weights import shaped

DEFAULTS = {
    "model": "smollm2-135m",  # a folder; with `random` also a name of model/registry.py
    "random": False,  # weights made in the process (named_noise) instead of read from the folder
    "layers": 0,  # of the model's blocks; 0: all (with `random`)
    "dtype": "bfloat16",
    "device": "cpu",
    "quantize": "",
    "compile": False,  # our blocks through torch.compile
    "graphs": True,  # our decoding step as a CUDA graph, on a GPU
    "memory": "auto",  # our eval.decode_memory: whether copies of weights are made
    # a training step
    "adapter": "lora",  # lora: r 16 on q and v; parallel: 256 beside attention and MLP; "": none
    "adapters": 1,  # so many of them, stacked
    "rows": 4,
    "tokens": 256,  # of a row and of a prompt
    "micro": 4,  # rows that go through the model at once
    "checkpointing": False,  # of every block
    # decoding
    "batch": 1,
    "beams": 1,
    "new": 64,  # tokens of each answer
    "cache": "dynamic",  # the peer's: dynamic or static
    "first": False,  # also the seconds to the first token, so that those of the others are known
}
# The 3,260 rows of the paper's math_10k-like training set, encoded by SmolLM2's tokenizer in the
# Alpaca prompt and cut at 256 tokens: the lengths at (i + 1/2) / 40 of the sorted rows.
LENGTHS = (
    94, 101, 105, 108, 111, 115, 118, 121, 124, 126, 128, 130, 132, 134, 136, 138, 139, 141, 143,
    145, 147, 150, 152, 154, 157, 160, 164, 168, 173, 177, 183, 189, 196, 203, 209, 219, 231, 245,
    256, 256,
)  # fmt: skip
PROMPT = (
    "Tom has 3 boxes with 12 pens each. He gives 5 pens to Ann and buys 7 more. How many pens does "
    "he have now? Let us think step by step. "
) * 6
LORA = {"r": 16, "alpha": 32.0, "dropout": 0.0}


def options(**given) -> dict:
    """DEFAULTS with these changed."""
    unknown = given.keys() - DEFAULTS.keys()
    assert not unknown, unknown
    return DEFAULTS | given


def token_rows(o: dict, vocab: int) -> Tensor:
    """Random ids int64 [rows, tokens], all of which are labelled."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, vocab - 10, (o["rows"], o["tokens"]), generator=generator)


def rows_of_real_lengths(o: dict, vocab: int) -> list[list[int]]:
    """`rows` rows of random ids, whose lengths are spread as those of the paper's data."""
    generator = torch.Generator().manual_seed(0)
    most = o["tokens"]
    return [
        torch.randint(
            5, vocab - 10, (min(most, LENGTHS[i * 17 % len(LENGTHS)]),), generator=generator
        ).tolist()
        for i in range(o["rows"])
    ]


def prompts(o: dict, vocab: int) -> Tensor:
    """Ids int64 [batch, tokens]: a text from different places on; random without a tokenizer."""
    path = Path(o["model"]) / "tokenizer.json"
    if o["random"] or not path.is_file():
        generator = torch.Generator().manual_seed(0)
        return torch.randint(5, vocab - 10, (o["batch"], o["tokens"]), generator=generator)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(path)).encode(PROMPT).ids
    starts = [row % 40 for row in range(o["batch"])]
    return torch.tensor([(ids * 8)[start : start + o["tokens"]] for start in starts])


def start(parameters: Sequence[nn.Parameter]) -> None:
    """The same values on both sides, for matrices in the order of their layers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def training_step(
    parameters: Sequence[nn.Parameter], loss_of: Callable[[int], Tensor], o: dict
) -> Callable[[], dict]:
    """A step of AdamW: loss_of(i) is the share of the micro-batch from row i on."""
    trained = sum(p.numel() for p in parameters)
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, weight_decay=0.0, fused=o["device"].startswith("cuda")
    )

    def run() -> dict:
        total = 0.0
        for first in range(0, o["rows"], o["micro"]):
            loss = loss_of(first)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(total), "norm": float(norm), "trained": trained}

    return run


def answering(generate: Callable[[int], list[list[int]]], o: dict) -> Callable[[], dict]:
    """Decoding with generate(new tokens) -> rows; with `first` twice, the second for one token."""

    def run() -> dict:
        began = time.perf_counter()
        rows = generate(o["new"])
        synchronize(o["device"])
        whole = time.perf_counter() - began
        if not o["first"]:
            return {"rows": rows}
        generate(1)
        synchronize(o["device"])
        one = time.perf_counter() - began - whole
        return {"rows": rows, "token": (whole - one) / max(1, o["new"] - 1), "first": one}

    return run


def step_flops(o: dict, trained: int) -> int:
    """FLOPs of a step without recomputation, the same for both sides.

    Frozen Linears: forward, and backward to the activations; attention over whole rows; `trained`
    parameters of adapters three times.
    """
    model = shaped(o["model"], torch.bfloat16, layers=o["layers"])
    tokens, shape = o["rows"] * o["tokens"], model.shape
    weights = sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 2)
    weights += model.lm_head.in_features * model.lm_head.out_features
    scores = 4 * tokens * o["tokens"] * shape.heads * shape.head_size * shape.layers
    return 4 * tokens * weights + 3 * scores + 6 * tokens * trained
