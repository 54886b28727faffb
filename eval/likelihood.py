"""Log-likelihoods of given continuations, for multiple-choice tasks and perplexity."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adapters.compose import Rows, rows_in_use, seated
from eval.prefill import Beginning, Read, read
from files.errors import UserError, short_of_memory
from model.language import LanguageModel
from model.packed import pack
from model.parts import CHUNK
from model.tokens import check_ids


def log_likelihoods(
    model: LanguageModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    batch_size: int = 16,
    pad_id: int = 0,
    vocab_size: int | None = None,
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids), in order: (log p(continuation | context) in nats,
    whether greedy decoding would generate the continuation).

    Probabilities are over all rows of the head; greedy decoding chooses among ids below vocab_size
    (None: all), as `generate` does. A context of several pairs is read once for all of them. With
    adapters by row (Rows) entry i is for pair i. Raises UserError for an empty context or
    continuation, and when out of memory.
    """
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            empty = "continuation" if context else "context"
            raise UserError(f"pair {number + 1} has an empty {empty}; both need at least one token")
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size should be 1 or more, not {batch_size!r:.50}")
    mixtures = rows_in_use(model)
    for rows in mixtures:
        rows.check(len(pairs))
    check_ids((ids for pair in pairs for ids in pair), model.input_embedding.in_features)
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    beginning = None
    model.eval()
    pack(model)
    for batch in batches(pairs, batch_size, bool(mixtures), not model.depends_on_length):
        with short_of_memory(
            f"on {model.device} with {batch_size} texts at once: lower batch_size"
        ):
            pass_ = Pass(model, pairs, batch, mixtures, pad_id)
            beginning = pass_.read(beginning)
            for i, figure in zip(pass_.numbers, pass_.figures(vocab_size), strict=True):
                results[i] = figure
    return results


def batches(
    pairs: Sequence[tuple[list[int], list[int]]], size: int, by_row: bool, shares: bool
) -> Iterator[list[list[int]]]:
    """The numbers of up to `size` pairs, those of one context together, the longest first.

    by_row: pairs have adapters of their own. shares: contexts may be read once.
    """
    groups: dict[tuple, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        groups.setdefault((*context, -i if by_row or not shares else 0), []).append(i)
    pieces = [
        numbers[start : start + size]
        for numbers in groups.values()
        for start in range(0, len(numbers), size)
    ]
    pieces.sort(key=lambda piece: -max(len(pairs[i][0]) + len(pairs[i][1]) for i in piece))
    batch: list[list[int]] = []
    for piece in pieces:
        if batch and sum(map(len, batch)) + len(piece) > size:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


class Pass:
    """The likelihoods of some pairs: contexts first, then what follows those of several pairs.

    groups: the numbers of pairs with one context. A context of a single pair is read together with
    its continuation.
    """

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[tuple[list[int], list[int]]],
        groups: list[list[int]],
        mixtures: list[Rows],
        pad_id: int,
    ):
        self.model, self.mixtures, self.pad_id = model, mixtures, pad_id
        self.groups, self.numbers = groups, [i for group in groups for i in group]
        self.contexts = [pairs[group[0]][0] for group in groups]
        self.owns = {i: pairs[i][1] for i in self.numbers}
        self.hidden: dict[int, Tensor] = {}  # [length of its continuation, E] for each pair

    @torch.inference_mode()
    def read(self, beginning: Beginning | None) -> Beginning | None:
        """Fill `hidden`. Returns the beginning of the contexts, for the next pass."""
        # The last token of a continuation is only predicted.
        rows = [
            context + (self.owns[group[0]][:-1] if len(group) == 1 else [])
            for context, group in zip(self.contexts, self.groups, strict=True)
        ]
        entries = [group[0] if self.mixtures else None for group in self.groups]
        prompts = list(map(len, self.contexts))
        found = read(self.model, rows, self.mixtures, entries, beginning, prompts)
        longer = []  # (pair, group) of what is still to be read
        for g, (group, context) in enumerate(zip(self.groups, self.contexts, strict=True)):
            last = len(context) - 1 - found.first
            for i in group:
                length = len(self.owns[i]) if len(group) == 1 else 1
                self.hidden[i] = found.hidden[g, last : last + length]
                if length < len(self.owns[i]):
                    longer.append((i, g))
        if longer:
            self.read_on(longer, found)
        return found.beginning

    def read_on(self, longer: list[tuple[int, int]], found: Read) -> None:
        """Read continuations after the keys of their contexts."""
        rest = [self.owns[i][:-1] for i, _ in longer]
        T = max(map(len, rest))
        slots = self.model.new_slots(len(rest), max(map(len, self.contexts)) + T)
        for row, (_, g) in enumerate(longer):
            slots.copy_row(row, found.cache, g, found.lengths[g])
        slots.begin(len(rest))
        padded = [row + [self.pad_id] * (T - len(row)) for row in rest]
        hidden = self.model.hidden(torch.tensor(padded, device=self.model.device), cache=slots)
        for row, (i, _) in enumerate(longer):
            self.hidden[i] = torch.cat((self.hidden[i], hidden[row, : len(rest[row])]))

    @torch.inference_mode()
    def figures(self, vocab_size: int | None) -> list[tuple[float, bool]]:
        """The results for the pairs in order; logits are made in pieces."""
        hidden = torch.cat([self.hidden[i] for i in self.numbers])  # [N, E]
        lengths = [len(self.owns[i]) for i in self.numbers]
        targets = torch.tensor([token for i in self.numbers for token in self.owns[i]])
        entries = [i for i in self.numbers for _ in self.owns[i]]
        pieces = []
        for start in range(0, len(hidden), CHUNK):
            some = slice(start, start + CHUNK)
            with seated(self.mixtures, entries[some]):
                logits = self.model.logits(hidden[some])
            pieces.append(score(logits, targets[some], vocab_size))
        log_probs, greedy = (
            torch.cat(parts).cpu().split(lengths) for parts in zip(*pieces, strict=True)
        )
        return [
            (float(logs.double().sum()), bool(first.all()))
            for logs, first in zip(log_probs, greedy, strict=True)
        ]


def score(logits: Tensor, targets: Tensor, vocab_size: int | None) -> tuple[Tensor, Tensor]:
    """Logits [N, V], targets [N] -> their log-probabilities [N], whether each is likeliest [N]."""
    targets = targets.to(logits.device)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return log_probs, logits[:, :vocab_size].argmax(dim=-1) == targets
