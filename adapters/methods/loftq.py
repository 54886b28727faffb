"""LoftQ (Li et al. 2023): LoRA that starts at what the quantisation of the base has lost.

    x ─┬── Q ──────────── + ── y      y = Q x + s · B A x      s · B A ≈ W - Q
       └── A ── B ── s ───┘

W is the weight in the checkpoint's files, Q the model's. s · B₀ A₀ are the r largest singular
values of W - Q (algorithm 1 with T = 1; PEFT's replace_lora_weights_loftq). From then on it is a
LoRA of the quantised base.
"""

from adapters.starts import Start, Started, check_principal, principal
from files.errors import UserError
from model.load import weights_before
from model.quantize.linear import QuantizedLinear


class LoftQ(Started):
    """y + s · B A dropout(x) beside a quantised Linear."""

    needs = "a quantised base"

    @classmethod
    def begin(cls, adapters, model, batches) -> dict[str, Start]:
        sites = {path: model.get_submodule(path) for path in adapters}
        for path, site in sites.items():
            check_principal(adapters[path].options, site)
            if not isinstance(site, QuantizedLinear):
                raise UserError("loftq needs a quantised base: give --quantize nf4 or int8")
        starts = dict.fromkeys(adapters)
        for path, weight in weights_before(model, sites):
            site, o = sites[path], adapters[path].options
            B, A = principal(weight.to(site.weight.device).float() - site.weight.float(), o.r)
            starts[path] = Start(o.r, o.alpha, A / o.scale**0.5, B / o.scale**0.5)
        return starts
