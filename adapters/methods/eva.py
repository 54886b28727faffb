"""EVA (Paischer et al. 2024): LoRA whose A starts where the site's input varies most.

    x ─┬── W ──────────── + ── y      y = W x + s · B A x      A = V of x = U S V, B = 0
       └── A ── B ── s ───┘

Before training the inputs of every site are looked at, for the tokens with a loss in `rows` of the
training rows. V are their principal components, by an SVD that is updated batch by batch (Ross et
al. 2008; adapters/starts.py). All sites share the budget of ranks: the components that explain the
largest shares of their site's variance get one each (eq. 4), at most rho · r at a site, none where
x hardly varies. alpha grows with a site's rank, so that s stays. From then on it is a LoRA.
"""

from dataclasses import dataclass
from typing import Annotated

from adapters.base import Size
from adapters.starts import Start, Started, activations, ranks_of
from files.typed import Range


class EVA(Started):
    """y + s · B A dropout(x), A [r, in] from the activations."""

    @dataclass(frozen=True)
    class Options(Started.Options):
        rho: Annotated[float, Range(1)] = 2.0  # a site's largest rank is rho · r; 1: all have r
        rows: Size = 256  # training rows whose activations are looked at

    @classmethod
    def begin(cls, adapters, model, batches) -> dict[str, Start]:
        seen = activations(adapters, model, batches)
        ranks = ranks_of(seen, sum(adapter.options.r for adapter in adapters.values()))
        of = {path: adapters[path].options for path in ranks}  # without sites that got none
        return {
            path: Start(r, of[path].alpha * r / of[path].r, seen[path].components[:r])
            for path, r in ranks.items()
        }
