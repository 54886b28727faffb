"""Likelihoods of the options of requests, from the first pass over their prompts.

    ids ── first pass ──> state of the last id ── logits ── first id of each option
                 └─ keys ──> pass over options[:-1] ── logits ── their other ids

A single option is read together with the ids before it, in the first pass.

Letters used for shapes: E size of the embedding, N tokens of all options.
"""

import torch
from torch import Tensor

from adapters.rows import Rows, seated
from eval.prefill import Read
from eval.requests import Request
from model.language import LanguageModel
from model.parts import CHUNK
from model.slots import Slots

Likelihood = tuple[float, bool]  # log p in nats, whether each of its ids is the likeliest
Option = tuple[int, list[int]]  # row of a `Read`, its own ids


class Options:
    """Compares the options of requests, of at most `slots` options at once.

    Probabilities are over all rows of the head; likeliest is meant among ids below vocab_size.
    """

    def __init__(
        self, model: LanguageModel, slots: int, vocab_size: int | None, mixtures: list[Rows]
    ):
        self.model, self.slots, self.vocab_size = model, slots, vocab_size
        self.mixtures = mixtures
        self.cache: Slots | None = None  # of passes over options

    def likelihoods(self, requests: dict[int, Request], found: Read) -> dict[int, list[Likelihood]]:
        """Those of each request's options; the keys are the rows of `found`."""
        options = [(row, own) for row, request in requests.items() for own in request.options]
        entries = [requests[row].entry for row, _ in options]
        states, longer = [], []  # [length of the option, E] of each; those not read to their end
        for o, (row, own) in enumerate(options):
            last = len(requests[row].ids) - 1 - found.first
            there = len(own) if len(requests[row].options) == 1 else 1
            states.append(found.hidden[row, last : last + there])
            longer += [o] if there < len(own) else []
        if longer:
            with seated(self.mixtures, [entries[o] for o in longer]):
                hidden = self.read_on(found, [options[o] for o in longer])
            for i, o in enumerate(longer):
                states[o] = torch.cat((states[o], hidden[i, : len(options[o][1]) - 1]))
        figures = iter(self.scores(states, options, entries))
        return {row: [next(figures) for _ in requests[row].options] for row in requests}

    def read_on(self, found: Read, options: list[Option]) -> Tensor:
        """Read options without their last id, after their rows -> hidden states [B, T, E]."""
        T = max(len(own) for _, own in options) - 1
        columns = found.cache.before + max(found.lengths[row] for row, _ in options) + T
        if self.cache is None or self.cache.length < columns:
            self.cache = None  # first, so that there are never two
            self.cache = self.model.new_slots(self.slots, columns, virtual=0)
        for slot, (row, _) in enumerate(options):
            self.cache.copy_row(slot, found.cache, row, found.lengths[row])
        self.cache.begin(len(options))
        padded = [own[:-1] + [0] * (T + 1 - len(own)) for _, own in options]
        return self.model.hidden(torch.tensor(padded, device=self.model.device), cache=self.cache)

    def scores(
        self, states: list[Tensor], options: list[Option], entries: list[int | None]
    ) -> list[Likelihood]:
        """The likelihood of each option, whose ids are predicted from states [its length, E].

        Logits are made in pieces.
        """
        lengths = list(map(len, states))
        hidden = torch.cat(states)  # [N, E]
        targets = torch.tensor([token for _, own in options for token in own])
        of_each = [entry for entry, n in zip(entries, lengths, strict=True) for _ in range(n)]
        pieces = []
        for start in range(0, len(hidden), CHUNK):
            some = slice(start, start + CHUNK)
            with seated(self.mixtures, of_each[some]):
                logits = self.model.logits(hidden[some])
            ids = targets[some].to(logits.device)
            log_probs = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(dim=-1)
            pieces.append((log_probs, logits[:, : self.vocab_size].argmax(dim=-1) == ids))
        both = (torch.cat(parts).cpu().split(lengths) for parts in zip(*pieces, strict=True))
        pairs = zip(*both, strict=True)
        return [(float(logs.double().sum()), bool(first.all())) for logs, first in pairs]
