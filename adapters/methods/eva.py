"""EVA (Paischer et al. 2024): LoRA whose A starts where the site's input varies most.

    x ─┬── W ──────────── + ── y      y = W x + s · B A x      A = V of x = U S V, B = 0
       └── A ── B ── s ───┘

Before training the inputs of every site are looked at, for the tokens with a loss in `rows` of the
training rows. V are their principal components, by an SVD that is updated batch by batch (Ross et
al. 2008). All sites share the budget of ranks: the components that explain the largest shares of
their site's variance get one each (eq. 4), at most rho · r at a site, none where x hardly varies.
alpha grows with a site's rank, so that s stays. From then on it is a LoRA, and saved as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from adapters.base import Size
from adapters.methods.lora import LoRA, Start, Started
from files.errors import UserError
from files.typed import Range
from model.language import LanguageModel


class EVA(Started):
    """y + s · B A dropout(x), A [r, in] from the activations."""

    @dataclass(frozen=True)
    class Options(LoRA.Options):
        rho: Annotated[float, Range(1)] = 2.0  # a site's largest rank is rho · r; 1: all have r
        rows: Size = 256  # training rows whose activations are looked at

    @classmethod
    def begin(
        cls, adapters: dict[str, "EVA"], model: LanguageModel, batches: Iterable
    ) -> dict[str, Start]:
        seen = activations(adapters, model, batches)
        budget = sum(adapter.options.r for adapter in adapters.values())
        shares = [
            (float(share), path) for path, found in seen.items() for share in found.explained()
        ]
        if len(shares) < budget:
            raise UserError(
                f"eva: the rows have too few tokens with a loss for {budget} components, raise "
                f"adapter.rows or lower adapter.r"
            )
        shares.sort(key=lambda pair: -pair[0])  # of equal ones the first site's is first
        best = [path for _, path in shares[:budget]]
        starts = {}
        for path, adapter in adapters.items():
            if r := best.count(path):
                alpha = adapter.options.alpha * r / adapter.options.r
                starts[path] = Start(r, alpha, seen[path].components[:r])
        return starts


class Components:
    """The principal components of rows that come in batches."""

    def __init__(self, most: int):
        self.most, self.count, self.total = most, 0, 0.0
        self.mean = self.values = self.components = None

    def update(self, x: Tensor) -> None:
        """x [n, in]: further rows."""
        x, n, m = x.float(), len(x), self.count
        if not n:
            return
        mean = x.mean(0)
        centred = x - mean
        self.total += float(centred.square().sum())
        if m:
            between = (m * n / (m + n)) ** 0.5 * (self.mean - mean)
            self.total += float(between.square().sum())
            before = self.values[:, None] * self.components
            centred = torch.cat((before, centred, between[None]))
            mean = (m * self.mean + n * mean) / (m + n)
        _, S, V = torch.linalg.svd(centred, full_matrices=False)
        largest = V.gather(1, V.abs().argmax(1, keepdim=True))
        self.components = (V * largest.sign())[: self.most]
        self.values, self.mean, self.count = S[: self.most], mean, m + n

    def explained(self) -> Tensor:
        """The share of the variance that each component explains [most]."""
        return self.values.square() / max(self.total, 1e-30)


@torch.no_grad()
def activations(
    adapters: dict[str, EVA], model: LanguageModel, batches: Iterable
) -> dict[str, Components]:
    """The components of every site's input. Sites called one after another with one x share them.

    batches: (ids [B, T], which of them count [B, T]), right-padded.
    """
    seen: dict[str, Components] = {}
    recent: list = [None, None]  # the last x, and its components

    def look(path: str, x: Tensor) -> None:
        if x is not recent[0]:
            options = adapters[path].options
            found = seen.setdefault(path, Components(round(options.rho * options.r)))
            found.update(x[:, -chosen.shape[1] :][chosen.to(x.device)])
            recent[:] = x, found
        seen[path] = recent[1]

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda site, inputs, path=path: look(path, inputs[0])
        )
        for path in adapters
    ]
    was_training = model.training
    left = max(adapter.options.rows for adapter in adapters.values())
    model.eval()
    try:
        for ids, chosen in batches:
            ids, chosen = ids[:left], chosen[:left]
            model(ids)
            left -= len(ids)
            if not left:
                break
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen
