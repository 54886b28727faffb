"""PiSSA (Meng et al. 2024): LoRA that starts at the principal singular values of the weight.

    x ─┬── W - s·B₀A₀ ──── + ── y         y = W x + s · (B A - B₀ A₀) x
       └── A ── B ── s ────┘

s · B₀ A₀ = U S V of the r largest singular values: B₀ [out, r] = U sqrt(S) / sqrt(s), A₀ [r, in] =
sqrt(S) V / sqrt(s) (eq. 2 to 4). Training starts at the base, with A and B where most of the weight
is. The base itself is not changed: what PiSSA takes out of it is subtracted beside it, so that the
adapter can be switched off. Written for PEFT, it is a plain LoRA of rank 2 r: [A; A₀], [B, -B₀].
"""

import torch
from torch import Tensor

from adapters.methods.lora import LoRA
from adapters.starts import check_principal, principal
from model.fsdp import whole
from model.sites import Site


class PiSSA(LoRA):
    """y + s · (B A - B₀ A₀) dropout(x); foldable into the weight."""

    works_on = ("Linear",)

    def __init__(self, options: LoRA.Options, site: Site):
        super().__init__(options, site)
        check_principal(options, site)
        if not site.weight.is_meta:
            B, A = principal(whole(site.weight).detach().float(), options.r)
            self.lora_A.data, self.lora_B.data = A / self.scale**0.5, B / self.scale**0.5
        self.register_buffer("lora_A_start", self.lora_A.detach().clone())
        self.register_buffer("lora_B_start", self.lora_B.detach().clone())

    def update(self, x: Tensor) -> Tensor:
        A, B = self.cast(self.lora_A_start, x), self.cast(self.lora_B_start, x)
        trained = self.linear(self.linear(x, self.lora_A), self.lora_B, self.lora_B_bias)
        return self.scale * (trained - self.linear(self.linear(x, A), B))

    # ---- files, merging, sums

    def factors(self) -> tuple[Tensor, Tensor]:
        A = torch.cat((self.lora_A, self.lora_A_start))
        return A, self.scale * torch.cat((self.lora_B, -self.lora_B_start), dim=1)

    def start(self, site: Site) -> dict[str, Tensor]:
        A, B = self.lora_A_start, self.lora_B_start
        return {"lora_A": A, "lora_B": B, "lora_A_start": A, "lora_B_start": B}
