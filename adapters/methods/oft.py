"""OFT (Qiu et al. 2023, eq. 4) in the form of OFTv2 (Qiu et al. 2025): the input is rotated.

    x ── R ── f ── y        y = f(x R),   R = diag(R₁, R₂, ...),   R_i = (I + Q_i) (I - Q_i)⁻¹

Each block R_i [b, b] is orthogonal: the Cayley transform of a skew-symmetric Q_i, of which the
entries above the diagonal are trained. They start at 0, R at I, the base. With terms > 0 the
inverse is a Neumann series: R_i ≈ I + 2 (Q_i + Q_i² + ... ) + Q_i^(terms - 1), orthogonal as long
as Q_i is small; terms = 0 solves for the inverse, then with -Q_i in place of Q_i, as in PEFT.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Folded, Size
from files.errors import UserError
from files.typed import Range
from model.sites import Site


class OFT(Adapter):
    """f(x R); foldable into the weight."""

    works_on = ("Linear",)
    changes_input = True
    peft_type = "OFT"

    @dataclass(frozen=True)
    class Options:
        block: Size = 32  # features that are rotated together
        terms: Annotated[int, Range(0, 64)] = 5  # of the series; 0: the exact inverse

        def check(self) -> None:
            if self.terms in (1, 2, 3):
                raise UserError(f"terms = {self.terms} should be 0, or 4 at least")

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, b = options, options.block
        if site.in_features % b or b == 1:
            raise UserError(
                f"block = {b} should be 2 at least and divide the Linear's input of "
                f"{site.in_features} features"
            )
        self.oft_R = nn.Parameter(torch.zeros(site.in_features // b, b * (b - 1) // 2))

    def rotation(self) -> Tensor:
        """The blocks R_i [blocks, b, b] in float32."""
        b, terms = self.options.block, self.options.terms
        Q = self.oft_R.new_zeros(len(self.oft_R), b, b)
        above, right = torch.triu_indices(b, b, 1, device=Q.device)
        Q = Q.index_put((torch.arange(len(Q), device=Q.device)[:, None], above, right), self.oft_R)
        Q, eye = Q - Q.mT, torch.eye(b, device=Q.device)
        if not terms:
            return torch.linalg.solve(eye + Q, eye - Q, left=False)
        R, power = eye + 2 * Q, Q
        for n in range(2, terms):
            power = power @ Q
            R = R + (power if n == terms - 1 else 2 * power)
        return R

    def before(self, x: Tensor) -> Tensor:
        return rotated(x, self.rotation().to(x))

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        R = self.rotation()
        return replace(f, inputs=(*f.inputs, lambda weight: rotated(weight, R.mT)))


def rotated(x: Tensor, blocks: Tensor) -> Tensor:
    """x [..., in] times a matrix of these blocks [in / b, b, b] on its diagonal."""
    pieces = x.unflatten(-1, blocks.shape[:2])
    return torch.einsum("...nk,nkc->...nc", pieces, blocks).flatten(-2)
