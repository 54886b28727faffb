"""LN tuning (Zhao et al. 2023): the weights and biases of the normalisations are trained, and nothing else.

x ── norm with γ', β' ── y          γ' · (x - mean) / std + β', from the base's γ and β (an RMSNorm has γ alone)
"""

from adapters.methods.full import Full


class LNTuning(Full):
    """A norm with trained copies of its weight and bias."""

    works_on = ("norm",)

    def key(self, leaf: str) -> str:
        return f"ln_tuning_layers.{leaf}"
