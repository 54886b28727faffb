"""What the starts of LoRA share: their form, singular values (PiSSA, LoftQ), activations (EVA)."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.base import Adapter
from adapters.methods.lora import LoRA
from files.errors import UserError
from model.language import LanguageModel
from model.sites import Site


class Start(NamedTuple):
    """Where a LoRA begins at a site, instead of a random A and B = 0 (adapters/begin.py)."""

    r: int
    alpha: float
    A: Tensor  # [r, in]
    B: Tensor | None = None  # [out, r]; None: zeros


class Started(LoRA):
    """A LoRA whose start is made before training, of more than the weight."""

    works_on = ("Linear",)

    @classmethod
    def begin(
        cls, adapters: dict[str, LoRA], model: LanguageModel, batches: Iterable
    ) -> dict[str, Start]:
        """The starts by path of the site; a site without one gets no adapter. Raises UserError.

        batches: (ids int64 [B, T], bool [B, T]: the tokens with a loss) of training rows.
        """
        raise NotImplementedError


def check_principal(o: LoRA.Options, site: Site) -> None:
    """Raise UserError where a start from r singular values, divided by sqrt(s), does not exist."""
    if o.alpha <= 0:
        raise UserError(f"alpha = {o.alpha} must be positive: the start is divided by its root")
    if o.r > min(site.in_features, site.out_features):
        raise UserError(
            f"r = {o.r}: a weight of {site.out_features} x {site.in_features} has no "
            "more than its smaller side of singular values"
        )


def principal(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """U sqrt(S) [out, r] and sqrt(S) V [r, in] of the r largest singular values, on the CPU.

    Computed on the weight's device. Of weights over 1024 on both sides by a randomised method with
    a fixed seed.
    """
    if min(weight.shape) <= 1024:
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        U, S, V = U[:, :r], S[:r], V[:r]
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(0)
            U, S, V = torch.svd_lowrank(weight, q=min(r + 16, min(weight.shape)), niter=8)
        U, S, V = U[:, :r], S[:r], V[:, :r].T
    return (U * S.sqrt()).contiguous().cpu(), (S.sqrt()[:, None] * V).contiguous().cpu()


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
    adapters: dict[str, Adapter], model: LanguageModel, batches: Iterable
) -> dict[str, Components]:
    """The components of every site's input. Sites called one after another with one x share them.

    batches: (ids [B, T], which of them count [B, T]), right-padded.
    """
    seen: dict[str, Components] = {}
    recent: list = [None, None]  # the last x, and its components

    def look(path: str, site: Site, inputs: tuple) -> None:
        x = inputs[0]
        if x is not recent[0]:
            options = adapters[path].options
            found = seen.setdefault(path, Components(round(options.rho * options.r)))
            found.update(x[:, -chosen.shape[1] :][chosen.to(x.device)])
            recent[:] = x, found
        seen[path] = recent[1]

    sites = {path: model.get_submodule(path) for path in adapters}
    hooks = [site.register_forward_pre_hook(partial(look, path)) for path, site in sites.items()]
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


def starts_of(adapters: dict[str, LoRA], seen: dict[str, Components]) -> dict[str, Start]:
    """The components that explain most, as many as the adapters have ranks; alpha by rank.

    Raises UserError where there are too few components.
    """
    budget = sum(adapter.options.r for adapter in adapters.values())
    shares = [(float(share), path) for path in seen for share in seen[path].explained()]
    if len(shares) < budget:
        raise UserError(
            f"eva: the rows have too few tokens with a loss for {budget} components, raise "
            "adapter.rows or lower adapter.r"
        )
    shares.sort(key=lambda pair: -pair[0])  # of equal ones the first site's is first
    starts, ranks = {}, Counter(path for _, path in shares[:budget])
    for path in filter(ranks.get, adapters):
        r, o = ranks[path], adapters[path].options
        starts[path] = Start(r, o.alpha * r / o.r, seen[path].components[:r])
    return starts
