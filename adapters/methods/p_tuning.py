"""P-tuning (Liu et al. 2021): a soft prompt that a small network makes, so that its tokens are learnt together.

    e₁ ... eₙ ── LSTM or MLP ── [p₁ ... pₙ; x₁ ... x_T] ── the frozen model          e [n, E], p [n, E]

The encoder is an MLP with two inner layers of `hidden` units, or a bidirectional LSTM with an MLP behind it; only what it makes is needed later, but
our files keep the encoder too, so that training can go on. Its parameters are made by torch's own layers, as in PEFT.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size, Tensors
from adapters.methods.prompt import KEY
from files.errors import UserError


class PTuning(Adapter):
    """[encoder(e); x]."""

    works_on = ("embedding",)
    starts_at_base = False
    adds = False

    @dataclass(frozen=True)
    class Options:
        length: Size = 20
        encoder: Literal["mlp", "lstm"] = "mlp"
        hidden: Size = 128
        depth: Size = 2  # layers of the LSTM

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options, self.virtual = options, options.length
        E, H = site.out_features, options.hidden
        self.table = nn.Parameter(torch.randn(options.length, E))
        if options.encoder == "lstm":
            self.lstm = nn.LSTM(E, H, options.depth, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * H, 2 * H), nn.ReLU(), nn.Linear(2 * H, E))
        else:
            self.mlp = nn.Sequential(
                nn.Linear(E, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, E)
            )

    def embeddings(self) -> Tensor:
        """[length, E], float32."""
        inner = self.lstm(self.table[None])[0][0] if self.options.encoder == "lstm" else self.table
        return self.mlp(inner)

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return (
            torch.cat((self.embeddings().to(x.dtype).expand(len(x), -1, -1), x), dim=1)
            if first
            else x
        )

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        """What PEFT reads, and the encoder."""
        (one,) = adapters.values()
        return {KEY: deepcopy(one).cpu().embeddings()} | {
            f"encoder.{leaf}": tensor for leaf, tensor in one.state_dict(keep_vars=True).items()
        }

    @classmethod
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        (one,) = adapters.values()
        made = tensors.pop(KEY)
        for leaf, into in one.state_dict(keep_vars=True).items():
            tensors.take(f"encoder.{leaf}", into)
        with torch.no_grad():
            if made.shape != one.embeddings().shape or not torch.allclose(
                one.embeddings().cpu(), made.float().cpu(), rtol=1e-4, atol=1e-5
            ):
                raise UserError(f"{tensors.where}: {KEY!r} is not what the encoder beside it makes")
