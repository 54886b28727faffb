"""A model written in 8 or 4 bits and measured beside the original."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.batches import encode_row
from data.prompts import template
from data.wordproblems import TRAINED, problems
from eval.fidelity import Fidelity, compare, predictions, windows
from experiments.folders import fresh_folder
from files.errors import UserError, unknown
from model import load_model, load_tokenizer
from model.quantize import STORED_AS, save_quantized
from model.show import count
from train.base import DTYPES, check_model, choose_devices
from train.settings import Settings


@dataclass(frozen=True)
class QuantizedModel:
    """What `quantize_model` wrote, and how far it is from the original."""

    files: list[Path]
    parameters: int
    bytes_before: int  # in memory
    bytes_after: int
    dtype: torch.dtype  # of the computation
    fidelity: Fidelity | None  # None: not measured


def quantize_model(
    name: str,
    to: str,
    folder: Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    text: Path | None = None,
    tokens: int = 1024,
    shard_bytes: int = 5 * 10**9,
) -> QuantizedModel:
    """Write a model with the weights of its blocks quantised to `to` (int8, llm-int8 or nf4).

    Both forms predict the first `tokens` tokens of `text` (None: solutions of word problems) and
    are compared; tokens=0 compares nothing. They are never in memory together. dtype: of the other
    weights and the computation (None: the checkpoint's). Raises UserError.
    """
    if to not in STORED_AS:
        raise unknown("quantization", to, STORED_AS)
    if tokens < 0 or tokens == 1 or not 0 < shard_bytes < 10**15:
        raise UserError("--tokens should be 0, or 2 and more, and --shard-size a number of GB")
    if dtype not in (None, *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    folder = fresh_folder(folder, numbered=False)
    check_model(name)
    rows = measured_rows(name, revision, text, tokens) if tokens else []

    def load(quantize: str):
        """float16 on a CPU is stored so and computed in float32, which is faster there."""
        devices = choose_devices(replace(Settings(), device=device))
        model = load_model(
            name, dtype=DTYPES.get(dtype), devices=devices, quantize=quantize, revision=revision
        )
        if model.dtype == torch.float16 and devices[0].type == "cpu":
            model.dtype = torch.float32
        return model

    model = load("")
    if model.quantize:
        raise UserError(
            f"{name} is stored as {model.quantize} already: give the model it was made from"
        )
    bytes_before = size(model)
    reference = list(predictions(model, rows))
    del model
    model = load(to)
    fidelity = compare(reference, predictions(model, rows)) if rows else None
    files = save_quantized(model, folder, shard_bytes)
    return QuantizedModel(files, count(model), bytes_before, size(model), model.dtype, fidelity)


def measured_rows(name: str, revision: str | None, text: Path | None, tokens: int) -> list:
    """Rows of `tokens` tokens of the text file; without one, word problems with so many tokens in
    their solutions, which alone are weighted. Raises UserError."""
    tokenizer, rows = load_tokenizer(name, revision), []
    if text is None:
        alpaca = template("alpaca", tokenizer)
        styles = [problems(style, "test", 0) for style in TRAINED]
        while sum(sum(row.weights) for row in rows) < tokens:
            problem = next(styles[len(rows) % len(styles)])
            rows.append(encode_row(tokenizer, problem, alpaca, cutoff=512)[0])
        return rows
    try:
        ids = tokenizer.encode(text.read_text(encoding="utf-8"), bos=True)[:tokens]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text} cannot be read: {error}") from None
    if len(ids) < 2:
        raise UserError(f"--text {text} has fewer than two tokens")
    return windows(ids)


def size(model) -> int:
    """Bytes of all that the model holds."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
