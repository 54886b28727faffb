"""A model written in 8 or 4 bits and measured beside what it was: what `run.py quantize` does."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from data.batches import encode_row
from data.prompts import template
from data.wordproblems import TRAINED, problems
from eval.fidelity import compare, predictions, windows
from experiments.run import fresh_folder
from files.errors import UserError, unknown
from model import load_model, load_tokenizer
from model.quantize import STORED_AS, save_quantized
from model.show import count, size_text
from train.base import DTYPES, check_model, choose_devices
from train.settings import Settings


def quantize(options: argparse.Namespace) -> int:
    if options.to not in STORED_AS:
        raise unknown("quantization", options.to, STORED_AS)
    if options.tokens < 0 or options.tokens == 1 or not 0 < options.shard_size < 1e6:
        raise UserError("--tokens should be 0, or 2 and more, and --shard-size a number of GB")
    folder = fresh_folder(Path(options.out), numbered=False)
    check_model(options.model)
    rows = measured_rows(options) if options.tokens else []
    model = load(options, "")
    if model.quantize:
        raise UserError(
            f"{options.model} is stored as {model.quantize} already: give the model it was made from"
        )
    bytes_before = size(model)
    reference = list(predictions(model, rows))
    del model
    model = load(options, options.to)
    found = compare(reference, predictions(model, rows)) if rows else None
    files = save_quantized(model, folder, int(options.shard_size * 1e9))
    print(
        f"quantised {options.model} to {options.to}: {count(model):,} parameters, {size_text(bytes_before)} before, {size_text(size(model))} now"
    )
    if found:
        print(
            f"measured  perplexity {found.reference:.4f} before, {found.other:.4f} now, mean KL divergence {found.divergence:.2g} nats a token, "
            f"on {found.tokens:,} tokens of {options.text or 'solutions of word problems'}, computed in {str(model.dtype).removeprefix('torch.')}"
        )
    print(
        f"written   {folder}: {', '.join(path.name for path in files[:12])}, {size_text(sum(path.stat().st_size for path in files))} in all"
    )
    print(f"use it    as --model {folder} of any command")
    return 0


def load(options: argparse.Namespace, how: str):
    """The model of the options, plain or quantised. float16 on a CPU is stored so and computed in float32: its own arithmetic is slow there."""
    if options.dtype not in (None, *DTYPES):
        raise unknown("dtype", options.dtype, DTYPES)
    devices = choose_devices(replace(Settings(), device=options.device or "auto"))
    model = load_model(
        options.model,
        dtype=DTYPES.get(options.dtype),
        devices=devices,
        quantize=how,
        revision=options.revision,
    )
    if model.dtype == torch.float16 and devices[0].type == "cpu":
        model.dtype = torch.float32
    return model


def measured_rows(options: argparse.Namespace) -> list:
    """The first --tokens tokens of --text; or so many of word problems, of which the solutions count. Raises UserError."""
    tokenizer, rows = load_tokenizer(options.model, options.revision), []
    if not options.text:
        manners = [problems(manner, "test", 0) for manner in TRAINED]
        while sum(sum(row.weights) for row in rows) < options.tokens:
            rows.append(
                encode_row(
                    tokenizer,
                    next(manners[len(rows) % len(manners)]),
                    template("alpaca", tokenizer),
                    cutoff=512,
                )[0]
            )
        return rows
    try:
        ids = tokenizer.encode(Path(options.text).read_text(encoding="utf-8"), bos=True)[
            : options.tokens
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {options.text} cannot be read: {error}") from None
    if len(ids) < 2:
        raise UserError(f"--text {options.text} has fewer than two tokens")
    return windows(ids)


def size(model) -> int:
    """Bytes of all that the model holds."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
