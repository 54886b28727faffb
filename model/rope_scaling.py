"""The extensions of LLaMA's context (rope_scaling): frequencies, and what is refused."""

import math
import warnings

import torch
from torch import Tensor, nn

from files.errors import UserError, unknown
from model.tokens import Tokens

TYPES = {  # rope_type -> its options; those with ! must be there
    "default": (),
    "linear": ("factor!",),
    "dynamic": ("factor!",),
    "llama3": ("factor!", "low_freq_factor!", "high_freq_factor!"),
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}

EVERYWHERE = ("rope_type", "type", "rope_theta", "original_max_position_embeddings", "finetuned")


def rope_type(scaling: dict) -> str:
    return scaling.get("rope_type", scaling.get("type", "default"))


def check_rope(scaling: dict, head_size: int) -> None:
    """Raise UserError for an extension that is unknown, incomplete, or has options of another."""
    kind = rope_type(scaling)
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(
            f"config.json: rope type {kind!r:.100} is not supported; choose from {', '.join(TYPES)}"
        )
    options = [option.rstrip("!") for option in TYPES[kind]]
    for key, value in scaling.items():
        if key == "partial_rotary_factor" and value == 1:
            continue
        if value is None and f"{key}!" not in TYPES[kind]:
            continue
        if key not in options and key not in EVERYWHERE:
            error = unknown(f"setting of rope type {kind}", key, [*options, *EVERYWHERE])
            raise UserError(f"config.json: {error}")
        if key in ("rope_type", "type", "truncate", "finetuned"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise UserError(
                f"config.json: rope {key:.100} = {value!r:.100} should be a positive number"
            )
    for option in TYPES[kind]:
        if option.endswith("!") and option.rstrip("!") not in scaling:
            raise UserError(f"config.json: rope type {kind} needs {option.rstrip('!')!r}")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError(
            f"config.json: rope high_freq_factor {scaling['high_freq_factor']} must be above "
            f"low_freq_factor {scaling['low_freq_factor']}"
        )
    if kind == "dynamic" and head_size <= 2:
        raise UserError("config.json: rope type dynamic needs a head_dim above 2")


def trained_length(config) -> int:
    """How many tokens a rotary model was trained for: max_position_embeddings, times what
    rope_scaling extends it by where max_position_embeddings does not hold that already."""
    scaling, longest = config.rope_scaling or {}, config.max_position_embeddings
    kind, factor = rope_type(scaling), scaling.get("factor") or 1
    old = scaling.get("original_max_position_embeddings")
    if kind == "default" or (kind == "llama3" and old and old < longest):
        return longest
    return max(longest, int((old or longest) * factor))


def depends_on_length(config) -> bool:
    """Whether a token's angles depend on the length of its row, not only on its position."""
    return rope_type(config.rope_scaling or {}) == "dynamic"


def rope_frequencies(config, positions: Tensor) -> tuple[Tensor, float]:
    """(inverse frequencies theta^(-2i/D), float32 [D/2] or [B, 1, 1, D/2]; factor on cos and sin).

    positions [B, T] count only for `dynamic`: the largest of each row, so that no row depends on
    the other rows of its batch.
    """
    D, scaling = config.head_size, config.rope_scaling or {}
    longest = config.max_position_embeddings
    kind, theta = rope_type(scaling), config.rope_theta
    exponents = torch.arange(0, D, 2, dtype=torch.float32, device=positions.device) / D
    inv_freq = theta**-exponents
    factor = scaling.get("factor")
    if kind == "linear":  # Chen et al. 2023: all positions closer together
        return inv_freq / factor, 1.0
    if kind == "dynamic":  # a larger base, as far as the text is longer than what was trained
        length = (positions.max(dim=1).values + 1).clamp(min=longest)[:, None, None, None]
        base = theta * (factor * length / longest - (factor - 1)) ** (D / (D - 2))
        return base**-exponents, 1.0
    old = scaling.get("original_max_position_embeddings") or longest
    if kind == "llama3":  # long wavelengths are stretched by `factor`, short ones kept
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = old * inv_freq / (2 * math.pi)  # rotations within the old context
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * inv_freq + (1 - keep) * inv_freq / factor, 1.0
    if kind == "yarn":
        return yarn(inv_freq, theta, D, old, scaling, factor or longest / old)
    return inv_freq, 1.0


def yarn(
    inv_freq: Tensor, theta: float, D: int, old: int, scaling: dict, factor: float
) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, section 3.2 and eq. 22), as `rope_frequencies` returns it.

    A ramp over the dimensions goes from the old frequencies to the stretched ones.
    """

    def dimension(turns: float) -> float:  # the one that turns so often within the old context
        return D * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    ramp = (
        torch.arange(D // 2, dtype=torch.float32, device=inv_freq.device)
        .sub(low)
        .div(high - low or 0.001)
        .clamp(0, 1)
    )
    attention = scaling.get("attention_factor")
    if attention is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention = temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    elif attention is None:
        attention = temperature(1.0)
    return ramp * inv_freq / factor + (1 - ramp) * inv_freq, attention


def warn_of_length(model: nn.Module, tokens: Tokens) -> None:
    """Warn, once a model, of a text longer than what it was trained for.

    The values of positions are read only where there are more keys than that: a GPU waits.
    """
    limit = trained_length(model.config)
    given = tokens.given is not None and tokens.given.device.type == "cpu"
    if model.warned_of_length or tokens.ids.is_meta or not (tokens.keys > limit or given):
        return
    longest = int(tokens.query_positions().max()) + 1
    if longest > limit:
        model.warned_of_length = True
        warnings.warn(
            f"a text of {longest} tokens is longer than the {limit} that the model was trained "
            f"for (max_position_embeddings): expect worse answers, or shorten it",
            stacklevel=2,
        )


def positions_of(model: nn.Module, ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """The positions [B, T] of right-padded rows; None: counting from 0 is right.

    With dynamic rope scaling a row's last position decides: a pad has that of the last real token.
    """
    if lengths is None or not model.depends_on_length:
        return None
    return torch.arange(ids.shape[1], device=ids.device).minimum(lengths[:, None] - 1)
