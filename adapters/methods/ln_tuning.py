"""LN tuning (Zhao et al. 2023): only the weights and biases of the normalisations are trained.

    x ── norm with γ', β' ── y        y = γ' · (x - mean) / std + β'

γ' and β' start at the base's γ and β. An RMSNorm has γ alone and subtracts no mean.
"""

from adapters.methods.full import Full


class LNTuning(Full):
    """A norm with trained copies of its weight and bias."""

    works_on = ("norm",)
    peft_type = "LN_TUNING"
    keys = {"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"}
