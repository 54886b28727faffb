"""The work of benchmarks/work.py by this project."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from adapters import attach, named_parameters
from benchmarks.random_weights import random_model
from benchmarks.training import timed_training
from benchmarks.work import (
    LORA,
    answering,
    prompts,
    rows_of_real_lengths,
    start,
    token_rows,
    training_step,
)
from data.batches import Example
from eval.generate import generate
from model.compiled import check_compiler, compiled
from model.language import LanguageModel
from model.load import load_model
from train.loss import summed_loss
from train.settings import Train

Run = Callable[[], dict]
UNTIL_THE_END = ExitStack()


def base(o: dict) -> LanguageModel:
    dtype = getattr(torch, o["dtype"])
    if o["random"]:
        device = torch.device(o["device"])
        return random_model(o["model"], dtype, o["quantize"], device, o["layers"])
    return load_model(o["model"], dtype, o["device"], o["quantize"] or None)


def adapted(o: dict) -> tuple[LanguageModel, dict[str, torch.nn.Parameter]]:
    """The model with the adapters of the options, and what is trained, in the common order."""
    model = base(o)
    put_adapters(model, o)
    named = named_parameters(model)
    start(list(named.values()))
    return model, named


def put_adapters(model: LanguageModel, o: dict) -> None:
    if o["adapter"] == "lora":
        sites = ["q", "v"] if "q" in model.sites else ["qkv"]
        for number in range(o["adapters"]):
            attach(model, "lora", f"a{number}", sites=sites, **LORA)
    else:
        attach(model, "parallel", size=256, sites=["attn", "mlp"], act="tanh")


def step(o: dict) -> Run:
    """A training step of a batch: forward, backward, clip, AdamW."""
    model, named = adapted(o)
    model.train()
    model.checkpointing = int(o["checkpointing"])
    ids = token_rows(o, model.config.vocab_size).to(o["device"])
    weights = torch.ones(ids.shape, device=ids.device)
    count = o["rows"] * (o["tokens"] - 1)

    def loss_of(first: int) -> torch.Tensor:
        rows = slice(first, first + o["micro"])
        return summed_loss(model, ids[rows], weights[rows]) / count

    compile_blocks(model, o)
    return training_step(list(named.values()), loss_of, o)


def epoch(o: dict) -> Run:
    """An epoch of the training loop over rows of real lengths, 16 rows a step."""
    model, _ = adapted(o)
    rows = rows_of_real_lengths(o, model.config.vocab_size)
    examples = [Example(ids, [1.0] * len(ids)) for ids in rows]
    size = min(16, o["rows"])
    s = Train(
        epochs=1,
        batch_size=size,
        micro_batch_size=o["micro"],
        learning_rate=1e-9,
        save_every=10**6,
        prompt_weight=1.0,
    )

    def run() -> dict:
        entries, _ = timed_training(model, examples, s)
        losses = [entry["loss"] for entry in entries]
        return {"loss": sum(losses) / len(losses), "tokens": sum(map(len, rows))}

    return run


def decode(o: dict) -> Run:
    """Greedy or beam decoding of a batch of prompts of one length."""
    model = adapted(o)[0].eval() if o["adapter"] else base(o)
    model.graphs, model.decode_memory = o["graphs"], o["memory"]
    ids = prompts(o, model.config.vocab_size).to(o["device"])
    run = answering(lambda new: generate(model, ids, max_new_tokens=new, beams=o["beams"]), o)
    read = bytes_read(model, o)
    compile_blocks(model, o, answers=True)
    return lambda: run() | {"read": read}


def compile_blocks(model: LanguageModel, o: dict, answers: bool = False) -> None:
    """Compile the blocks for the rest of the process, if the options say so. Raises UserError."""
    if o["compile"]:
        check_compiler(torch.device(o["device"]), "compile")
        UNTIL_THE_END.enter_context(compiled(model, answers))


def bytes_read(model: LanguageModel, o: dict) -> int:
    """Bytes that a token of a batch reads: weights once, and each row's keys and values."""
    tensors = (*model.parameters(), *model.buffers())
    weights = sum(tensor.nbytes for tensor in tensors)
    if not model.tied:
        weights -= model.input_embedding.weight.nbytes
    shape, context = model.shape, o["tokens"] + o["new"] // 2
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * context * model.dtype.itemsize
    return weights + o["batch"] * cache
