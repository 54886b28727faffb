"""EVA (Paischer et al. 2024): LoRA whose A starts where the site's input varies most.

    x ─┬── W ──────────── + ── y      y = W x + s · B A x      A = V of x = U S V, B = 0
       └── A ── B ── s ───┘

Before training the inputs of every site are looked at, for the tokens with a loss in `rows` of the
training rows. V are their principal components (adapters/starts.py). The components that explain
the largest shares of their site's variance get a rank each (eq. 4), at most rho · r at a site.
alpha grows with a site's rank, so that s stays. From then on it is a LoRA.
"""

from dataclasses import dataclass
from typing import Annotated

from adapters.base import Size
from adapters.starts import Start, Started, activations, starts_of
from files.typed import Range


class EVA(Started):
    """y + s · B A dropout(x), A [r, in] from the activations."""

    @dataclass(frozen=True)
    class Options(Started.Options):
        rho: Annotated[float, Range(1)] = 2.0  # a site's largest rank is rho · r; 1: all have r
        rows: Size = 256  # training rows whose activations are looked at

    @classmethod
    def begin(cls, adapters, model, batches) -> dict[str, Start]:
        return starts_of(adapters, activations(adapters, model, batches))
