"""Rows -> token ids with a loss weight each -> the batches of an epoch.

Only the seed decides their order.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.assistant_turns import Conversation, encode_chat
from data.prompts import Template
from data.stops import turn_end
from model.packing import Packing, filling


@dataclass(frozen=True)
class Example:
    """Token ids and, for each, the weight of predicting it from those before it (0: no loss)."""

    ids: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.ids)


def encode_prompt(tokenizer, row: dict, template: Template) -> tuple[str, list[int]]:
    """`encode_prompts` of one row."""
    (encoded,) = encode_prompts(tokenizer, [row], template)
    return encoded


def encode_prompts(
    tokenizer, rows: Sequence[dict], template: Template
) -> Iterator[tuple[str, list[int]]]:
    """The text before each row's response, and its ids.

    A chat template writes the special tokens itself. Other templates get a BOS at the start and
    an EOS after every earlier response.
    """
    for row, text in zip(rows, template.prompts(rows), strict=True):
        if template.chat:
            yield text, tokenizer.encode(text, bos=False)
        else:
            turns = template.turns(row)
            ids, _ = encode_turns(tokenizer, turns[:-1])
            yield text, ids + tokenizer.encode(turns[-1][0], bos=not ids)


def encode_row(
    tokenizer,
    row: dict,
    template: Template,
    cutoff: int,
    prompt_weight: float = 0.0,
    chat: Conversation | None = None,
) -> tuple[Example, bool]:
    """A row {instruction, input, output, history} -> (its Example, whether it was cut at `cutoff`
    tokens).

    Loss weight 1 on every response and its end token, `prompt_weight` on the rest. In chats a
    response is what data/assistant_turns.py says; for other templates it begins where the ids of
    prompt + response leave those of the prompt alone, which is what generation will see.
    chat: of a chat template, where the row is rendered already (`Template.conversations`).
    Raises RefusedMessages for a row that the template has no form for.
    """
    if template.chat:
        chat = chat or template.conversation(row)
        end = None if chat.marked else turn_end(tokenizer, template.text)
        ids, learned = encode_chat(tokenizer, chat, end)
    else:
        ids, learned = encode_turns(tokenizer, template.turns(row))
    weights = [weight or prompt_weight for weight in learned]
    return Example(ids[:cutoff], weights[:cutoff]), len(ids) > cutoff


def encode_turns(
    tokenizer, turns: Sequence[tuple[str, str, float]]
) -> tuple[list[int], list[float]]:
    """(prompt, response, weight) turns -> (ids, the weight of each; 0 on prompts), an EOS after
    every response."""
    ids: list[int] = []
    weights: list[float] = []
    for asked, response, weight in turns:
        before = tokenizer.encode(asked, bos=not ids)
        both = tokenizer.encode(asked + response, bos=not ids)
        if tokenizer.eos_id is not None and both[-1:] != [tokenizer.eos_id]:
            both.append(tokenizer.eos_id)
        start = shared_start(before, both)
        ids += both
        weights += [0.0] * start + [float(weight)] * (len(both) - start)
    return ids, weights


def shared_start(first: list[int], second: list[int]) -> int:
    """How many ids two rows have in common from their start on."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def pack_text(tokenizer, texts: Sequence[str], cutoff: int) -> tuple[list[Example], int]:
    """Plain texts -> (rows of `cutoff` tokens with loss on all of them, the tokens in all).

    The texts follow each other with an EOS after each; the last row may be shorter.
    """
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text)
        if tokenizer.eos_id is not None:
            ids.append(tokenizer.eos_id)
    rows = [ids[start : start + cutoff] for start in range(0, len(ids), cutoff)]
    return [Example(row, [1.0] * len(row)) for row in rows if len(row) > 1], len(ids)


def epoch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group: bool = False
) -> list[list[int]]:
    """The batches of one epoch as lists of row numbers; a last short batch is kept.

    group: rows of similar length share a batch (sorted within pools of 50 batches).
    """
    rng = random.Random(f"order {seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    if group:
        pool = {row: place // (batch_size * 50) for place, row in enumerate(order)}
        order.sort(key=lambda row: (pool[row], lengths[row]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if group:
        rng.shuffle(batches)
    return batches


def seed_from(*numbers: int) -> int:
    """One seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def micro_batches(
    examples: Sequence[Example], size: int, tokens: int = 0, packing: bool = False
) -> list[list[Example]]:
    """One batch, sorted by length and cut into micro-batches, so that there is less padding.

    They hold `size` rows each; or, with `tokens` above 0, as many as have at most so many tokens,
    pads included unless they are packed. A longer row has a micro-batch of its own.
    """
    ordered = sorted(examples, key=len, reverse=True)
    if not tokens:
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]
    batches: list[list[Example]] = []
    room = 0
    for example in ordered:
        need = len(example) if packing or not room else len(batches[-1][0])
        if need > room:
            batches.append([])
            room, need = tokens, len(example)
        batches[-1].append(example)
        room -= need
    return batches


class Labels(NamedTuple):
    """The tokens of a micro-batch that predict a label, L of them; made where the rows are lists,
    so that no GPU has to be asked for a mask's content."""

    places: Tensor  # int64 [L], among the B * T tokens, or the N packed ones
    targets: Tensor  # int64 [L], the ids to predict
    weights: Tensor  # float32 [L]
    packing: Packing | None  # None: all tokens have a label, or packing is off
    prompts: Tensor | None = None  # int64 [B], tokens of each row before its first label


class Batch(NamedTuple):
    """A micro-batch on a device: the arguments of `summed_loss` after the model."""

    ids: Tensor  # int64 [B, T]
    weights: Tensor  # float32 [B, T]
    lengths: Tensor  # int64 [B]
    labels: Labels


def collate(
    examples: Sequence[Example], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded rows: ids, weights and lengths of a `batch_of` these examples."""
    return batch_of(examples, pad_id, device)[:3]


def batch_of(
    examples: Sequence[Example],
    pad_id: int,
    device: torch.device | str,
    packing: bool = False,
    virtual: int = 0,
) -> Batch:
    """Right-padded rows, and which of their tokens have a label.

    Causal order hides the pads, so no mask is needed. packing: leave the pads out of the blocks'
    work; `virtual`: tokens that prompt tuning puts before every row. Copies to a GPU are from
    pinned memory, which the host does not wait for.
    """
    device = torch.device(device)
    lengths = torch.tensor([len(example) for example in examples])
    T = int(lengths.max())
    ids = torch.tensor([example.ids + [pad_id] * (T - len(example)) for example in examples])
    weights = torch.tensor([example.weights + [0.0] * (T - len(example)) for example in examples])
    row, place = weights[:, 1:].nonzero(as_tuple=True)  # token `place` predicts the next one
    targets, label_weights = ids[row, place + 1], weights[row, place + 1]
    packs = packing and (lengths.min() < T or len(place) < len(ids) * (T - 1))
    # packed, the tokens of a row follow those of the rows before it
    starts = (lengths + virtual).cumsum(0) - lengths if packs else torch.arange(len(ids)) * T
    places = starts[row] + place

    def there(tensor: Tensor) -> Tensor:
        if device.type != "cuda":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    packed = None
    if packs:
        packed = Packing.of(lengths, places, virtual)
        without = torch.ones(len(packed.index), dtype=torch.bool).index_fill_(0, places, False)
        extra = filling(~without)
        places = torch.cat((places, extra))
        targets, label_weights = (F.pad(t, (0, len(extra))) for t in (targets, label_weights))
        packed = replace(packed, kept=places).map(there)
    prompts = there(weights[:, 1:].ne(0).int().argmax(dim=1) + 1)
    labels = Labels(there(places), there(targets), there(label_weights), packed, prompts)
    return Batch(there(ids), there(weights), there(lengths), labels)
