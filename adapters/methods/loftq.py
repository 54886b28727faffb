"""LoftQ (Li et al. 2023): LoRA that starts at what the quantisation of the base has lost.

    x ─┬── Q ──────────── + ── y      y = Q x + s · B A x      s · B A ≈ W - Q
       └── A ── B ── s ───┘

W is the weight in the checkpoint's files, Q the quantised one that the model has. s · B₀ A₀ are
the r largest singular values of W - Q, so that Q + s · B₀ A₀ is as near to W as rank r allows
(algorithm 1 with T = 1, the base as it is; PEFT's replace_lora_weights_loftq). From then on it is a
LoRA of the quantised base, and saved as one.
"""

from collections.abc import Iterable

from adapters.methods.lora import Start, Started
from adapters.methods.pissa import check_principal, principal
from files.errors import UserError
from model.language import LanguageModel
from model.load import weights_before
from model.quantize.linear import QuantizedLinear


class LoftQ(Started):
    """y + s · B A dropout(x) beside a quantised Linear."""

    needs = "a quantised base"

    @classmethod
    def begin(
        cls, adapters: dict[str, "LoftQ"], model: LanguageModel, batches: Iterable
    ) -> dict[str, Start]:
        sites = {path: model.get_submodule(path) for path in adapters}
        for path, site in sites.items():
            check_principal(adapters[path].options, site)
            if not isinstance(site, QuantizedLinear):
                raise UserError(
                    f"loftq starts at what quantisation has lost, and {path} is not quantised: "
                    "give --quantize nf4 or int8"
                )
        starts = {}
        for path, weight in weights_before(model, sites):
            site, o = sites[path], adapters[path].options
            lost = weight.to(site.weight.device).float() - site.weight.float()
            B, A = principal(lost, o.r)
            starts[path] = Start(o.r, o.alpha, A / o.scale**0.5, B / o.scale**0.5)
        return {path: starts[path] for path in adapters}
