"""Write a model with its weights in 8 or 4 bits, and measure what that costs."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.batches import Example, encode_row
from data.prompts import template
from data.wordproblems import TRAINED, problems
from eval.fidelity import Fidelity, compare, predictions, windows
from experiments.base import DTYPES, check_model, choose_devices
from experiments.folders import fresh_folder
from files.errors import UserError, unknown
from model import load_model, load_tokenizer
from model.quantize import STORED_AS, save_quantized
from model.show import count, size_text
from train.settings import Settings

MEASURED_ON = "solutions of word problems"


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize_model`; sizes are bytes of all parameters and buffers."""

    model: str
    to: str
    folder: Path
    files: list[Path]
    parameters: int
    bytes_before: int
    bytes_after: int
    dtype: str  # of the computation
    fidelity: Fidelity | None  # None: not measured
    text: str  # what was measured on

    def lines(self) -> list[str]:
        lines = [
            f"quantised {self.model} to {self.to}: {self.parameters:,} parameters, "
            f"{size_text(self.bytes_before)} before, {size_text(self.bytes_after)} now"
        ]
        if found := self.fidelity:
            lines.append(
                f"measured  perplexity {found.reference:.4f} before, {found.other:.4f} now, mean "
                f"KL divergence {found.divergence:.2g} nats a token, on {found.tokens:,} tokens of "
                f"{self.text}, computed in {self.dtype}"
            )
        names = ", ".join(path.name for path in self.files[:12])
        total = size_text(sum(path.stat().st_size for path in self.files))
        lines.append(f"written   {self.folder}: {names}, {total} in all")
        return [*lines, f"use it    as --model {self.folder} of any command"]


def quantize_model(
    model: str,
    folder: Path,
    to: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    text: str | None = None,
    tokens: int = 1024,
    shard_size: float = 5.0,
) -> Quantized:
    """Write the model to `folder` with the weights of its blocks stored as `to`.

    model: a known name, a hub repository or a folder. to: int8, llm-int8 or nf4. dtype: of the
    other weights and the computation (None: the checkpoint's own). Perplexity and KL divergence are
    measured on the first `tokens` tokens of the file `text`, or of word problems' solutions; 0: not
    at all. shard_size: largest file, in GB. The two models are never in memory together.
    Raises UserError.
    """
    if to not in STORED_AS:
        raise unknown("quantization", to, STORED_AS)
    if tokens < 0 or tokens == 1 or not 0 < shard_size < 1e6:
        raise UserError("--tokens should be 0, or 2 and more, and --shard-size a number of GB")
    if dtype not in (None, *DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    folder = fresh_folder(folder, numbered=False)
    check_model(model)
    rows = rows_to_measure(model, revision, text, tokens) if tokens else []
    devices = choose_devices(replace(Settings(), device=device))

    def load(quantize: str):
        """float16 on a CPU is computed in float32, as its arithmetic is slow there."""
        loaded = load_model(
            model, dtype=DTYPES.get(dtype), devices=devices, quantize=quantize, revision=revision
        )
        if loaded.dtype == torch.float16 and devices[0].type == "cpu":
            loaded.dtype = torch.float32
        return loaded

    net = load("")
    if net.quantize:
        raise UserError(
            f"{model} is stored as {net.quantize} already: give the model it was made from"
        )
    bytes_before = size(net)
    reference = list(predictions(net, rows))
    del net
    net = load(to)
    fidelity = compare(reference, predictions(net, rows)) if rows else None
    files = save_quantized(net, folder, int(shard_size * 1e9))
    dtype = str(net.dtype).removeprefix("torch.")
    return Quantized(
        model, to, folder, files, count(net), bytes_before, size(net), dtype, fidelity,
        text or MEASURED_ON,
    )  # fmt: skip


def rows_to_measure(
    model: str, revision: str | None, text: str | None, tokens: int
) -> list[Example]:
    """The first tokens of a text, or word problems with their solutions. Raises UserError."""
    tokenizer, rows = load_tokenizer(model, revision), []
    if not text:
        manners = [problems(manner, "test", 0) for manner in TRAINED]
        alpaca = template("alpaca", tokenizer)
        while sum(sum(row.weights) for row in rows) < tokens:
            problem = next(manners[len(rows) % len(manners)])
            rows.append(encode_row(tokenizer, problem, alpaca, cutoff=512)[0])
        return rows
    try:
        ids = tokenizer.encode(Path(text).read_text(encoding="utf-8"), bos=True)[:tokens]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text} cannot be read: {error}") from None
    if len(ids) < 2:
        raise UserError(f"--text {text} has fewer than two tokens")
    return windows(ids)


def size(model) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
