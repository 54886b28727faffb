"""Rows -> token ids with a loss weight each -> the batches of an epoch, in an order that only the seed decides."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.prompts import Template


@dataclass(frozen=True)
class Example:
    """Token ids and, for each, the weight of predicting it from those before it (0: no loss)."""

    ids: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.ids)


def encode_prompt(tokenizer, row: dict, template: Template) -> tuple[str, list[int]]:
    """The text in front of a row's response, and its ids. A chat template writes the special tokens itself."""
    text = template.prompt(row)
    return text, tokenizer.encode(text, bos=not template.chat)


def encode_row(tokenizer, row: dict, template: Template, cutoff: int, prompt_weight: float = 0.0) -> tuple[Example, bool]:
    """A row {instruction, input, output} -> (its Example, whether it was cut at `cutoff` tokens).

    Loss weight 1 on the response and the end token, `prompt_weight` on the prompt. The response starts where the ids
    of prompt + response leave those of the prompt alone, which is what generation will see.
    """
    _, before = encode_prompt(tokenizer, row, template)
    ids = tokenizer.encode(template.whole(row), bos=not template.chat)
    common = shared_start(before, ids)
    if tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id]:
        ids = [*ids, tokenizer.eos_id]
    weights = [prompt_weight] * common + [1.0] * (len(ids) - common)
    return Example(ids[:cutoff], weights[:cutoff]), len(ids) > cutoff


def shared_start(first: list[int], second: list[int]) -> int:
    """How many ids two rows have in common from their start on."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group: bool = False) -> list[list[int]]:
    """The batches of one epoch as lists of row numbers, the same for the same seed; a last short batch is kept.

    group=True makes batches of near-equal lengths (within pools of 50 batches), for training from scratch.
    """
    rng = random.Random(f"order {seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    if group:
        pool = batch_size * 50
        pools = [sorted(order[i : i + pool], key=lambda row: lengths[row]) for i in range(0, len(order), pool)]
        order = [row for rows in pools for row in rows]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if group:
        rng.shuffle(batches)
    return batches


def seed_from(*numbers: int) -> int:
    """One seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """One effective batch, sorted by length and cut into micro-batches: the same set per step, less padding."""
    ordered = sorted(examples, key=len, reverse=True)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def collate(
    examples: Sequence[Example], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids int64 [B, T], weights float32 [B, T], and the rows' lengths int64 [B].

    Causal order hides the pads, so no mask is needed.
    """
    lengths = [len(example) for example in examples]
    T = max(lengths)
    ids = [example.ids + [pad_id] * (T - len(example)) for example in examples]
    weights = [example.weights + [0.0] * (T - len(example)) for example in examples]
    return tuple(torch.tensor(rows, device=device) for rows in (ids, weights, lengths))
