"""DoRA (Liu et al. 2024, eq. 5): LoRA turns the weight's rows, a trained magnitude scales them.

    x ──── m · V / ‖V‖ ──── y             y = (m / ‖V‖) · V x + b,   V = W + s · B A

m [out] starts at ‖W‖; ‖·‖ is the norm of each row of V (one output). The bias is not scaled. The
norm is a constant for the gradient (section 4.3).
"""

import weakref
from dataclasses import replace

import torch
from torch import Tensor, nn

from adapters.base import Folded
from adapters.methods.lora import LoRA
from files.errors import UserError
from model.fsdp import whole
from model.sites import Site


class DoRA(LoRA):
    """(m / ‖V‖) · (f(x) - b + s · B A dropout(x)) + b; foldable into the weight."""

    works_on = ("Linear",)
    keys = LoRA.keys | {"lora_magnitude_vector": "lora_magnitude_vector"}

    def __init__(self, options: LoRA.Options, site: Site):
        super().__init__(options, site)
        if options.bias or options.gate:
            raise UserError("DoRA has neither a bias nor a gate of its own")
        self.kept: tuple[Tensor | None, list] = None, []  # the norm, and the tensors it is made of
        self.lora_magnitude_vector = nn.Parameter(self.norm(whole(site.weight)))

    @torch.no_grad()
    def norm(self, weight: Tensor) -> Tensor:
        """‖W + s · B A‖ of each row [out], in float32, without B A in memory.

        ‖W + B A‖² = ‖W‖² + 2 W·(B A) + ‖B A‖².
        """
        A, B = self.lora_A.to(weight.device), self.scale * self.lora_B.to(weight.device)
        across = (weight.float() @ A.T * B).sum(dim=1)
        square = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
        square = square + 2 * across + (B @ (A @ A.T) * B).sum(dim=1)
        return square.clamp(min=1e-12).sqrt()

    def norm_at(self, f: Site) -> Tensor:
        """`norm` of the site's weight, kept until the weight, A or B change.

        It reads the whole weight, which a pass over one token must not do again.
        """
        if torch.compiler.is_compiling():
            return self.norm(f.weight)
        base = (*f.parameters(recurse=False), *f.buffers(recurse=False))
        tensors = (*base, self.lora_A, self.lora_B)
        if any(tensor.is_inference() for tensor in tensors):  # these have no versions
            return self.norm(f.weight)
        made_of = [(weakref.ref(t.untyped_storage()), t._version) for t in tensors]
        norm, known = self.kept
        unusable = norm is None or (norm.is_inference() and not torch.is_inference_mode_enabled())
        if unusable or made_of != known:
            norm = self.norm(f.weight)
            self.kept = norm, made_of
        return norm

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        ratio = (self.lora_magnitude_vector / self.norm_at(f)).to(y.dtype)
        plain = y if f.bias is None else y - f.bias.to(y.dtype)
        return y + (ratio - 1) * plain + ratio * self.delta(x)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        f.check_base(self, "weight", "bias")
        turned = f.weight + self.scale * self.lora_B @ self.lora_A
        ratio = self.lora_magnitude_vector / turned.norm(dim=1)
        return replace(f, weight=turned * ratio[:, None])

    def factors(self) -> tuple[Tensor, Tensor]:
        raise UserError(
            "DoRA changes the length of the weight's rows and is no plain LoRA; merge it into the "
            "weights instead"
        )

    def start(self, site: Site) -> dict[str, Tensor]:
        return {"lora_magnitude_vector": whole(site.weight).detach().float().norm(dim=1)}
