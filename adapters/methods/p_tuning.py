"""P-tuning (Liu et al. 2021): a soft prompt that a small network makes from trained inputs.

    e₁ ... eₙ ── LSTM or MLP ── [p₁ ... pₙ; x₁ ... x_T] ── the frozen model

e and p are [n, E]. The encoder is an MLP with two inner layers of `hidden` units, or a
bidirectional LSTM with an MLP after it, made of torch's own layers, as in PEFT. Only p is needed
later; our files keep the encoder too, so that training can go on.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size
from adapters.methods.prompt import KEY, SoftPrompt
from adapters.tensors import Tensors
from model.sites import Site


class PTuning(SoftPrompt):
    """[encoder(e); x]."""

    @dataclass(frozen=True)
    class Options:
        length: Size = 20
        encoder: Literal["mlp", "lstm"] = "mlp"
        hidden: Size = 128
        depth: Size = 2  # layers of the LSTM

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.virtual = options, options.length
        E, H = site.out_features, options.hidden
        self.table = nn.Parameter(torch.randn(options.length, E))
        if options.encoder == "lstm":
            self.lstm = nn.LSTM(E, H, options.depth, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * H, 2 * H), nn.ReLU(), nn.Linear(2 * H, E))
        else:
            layers = nn.Linear(E, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, E)
            self.mlp = nn.Sequential(*layers)

    def embeddings(self) -> Tensor:
        inner = self.lstm(self.table[None])[0][0] if self.options.encoder == "lstm" else self.table
        return self.mlp(inner)

    # ---- files, merging, sums

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        """The prompt, which PEFT reads, and the encoder."""
        (adapter,) = adapters.values()
        encoder = adapter.state_dict(keep_vars=True)
        return {KEY: deepcopy(adapter).cpu().embeddings()} | {
            f"encoder.{leaf}": tensor for leaf, tensor in encoder.items()
        }

    @classmethod
    @torch.no_grad()
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        (adapter,) = adapters.values()
        stored = tensors.pop(KEY)
        for leaf, into in adapter.state_dict(keep_vars=True).items():
            tensors.take(f"encoder.{leaf}", into)
        tensors.check_derived(KEY, stored, adapter.embeddings())
