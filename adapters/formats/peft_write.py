"""PEFT's adapter files: what we write for it (reading: adapters/formats/peft_read.py).

Our own files have PEFT's names for everything that PEFT can compute, so that it reads them as they are; `header` is what it needs for that.
`write` makes a file for PEFT alone, of more: soft prompts without the network that made them, mixtures of LoRA with whole modules, biases or rows
of the embedding, and, plain, everything that is a product of two matrices as a LoRA with alpha = r.
"""

import math
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.attach import parts_of
from adapters.base import PREFIX, Adapter
from adapters.config import METHODS, AdapterConfig
from adapters.formats.peft_beside import HEAD_BIAS, MORE
from adapters.formats.peft_fields import base_name, check_base
from adapters.formats.peft_places import as_targets, leaves
from adapters.formats.peft_read import read
from adapters.methods.lora import EmbeddingLoRA
from adapters.methods.prefix import KEY as PROMPT
from files.errors import UserError

__all__ = ["check_base", "header", "read", "write"]

BESIDE = {  # kind -> what PEFT can train beside it
    "lora": ("full", "bitfit", "token_rows"),
    "dora": ("full", "bitfit", "token_rows"),
    "pissa": ("full", "bitfit", "token_rows"),
    "adalora": ("full", "bitfit"),
    "vera": ("full", "bitfit"),
    "ia3": ("full",),
    "ln_tuning": ("full",),
}
SHARES = 1000  # AdaLoRA's schedule is in steps of the whole run there, in shares of it here


def header(model: nn.Module, config: AdapterConfig, adapters: dict[str, Adapter]) -> dict:
    """The fields of our own file's adapter_config.json beside our section: PEFT's where it computes this adapter from our tensors, else a description."""
    if config.only:
        try:
            fields, tensors = write(model, config, adapters, plain=False)
            native = METHODS[config.only.kind].to_file(adapters)
            if all(
                key in native and torch.equal(native[key], tensor)
                for key, tensor in tensors.items()
            ):
                return fields
        except UserError:
            pass  # PEFT has no place for it; our own section says everything
        if config.only.kind == "bottleneck":
            return common(model, "BOTTLENECK") | bottleneck_fields(adapters)
    kind = config.kind.upper()
    return common(
        model, f"NATIVE_{kind}" if config.kind in WRITERS else kind
    )  # not by a name that would make PEFT read what it cannot compute


def bottleneck_fields(adapters: dict[str, Adapter]) -> dict:
    """The paper's names for a bottleneck's options, with the kind of each module spelled out."""
    kinds = {
        ("input", "input"): "mh_adapter",
        ("output", "output"): "output_adapter",
        ("input", "output"): "parallel_adapter",
    }
    first = next(iter(adapters.values()))
    return {
        "bottleneck_size": len(first.adapter_down),
        "non_linearity": first.options.act,
        "adapter_dropout": first.options.dropout,
        "scaling": first.options.scale,
        "target_modules": leaves(adapters),
        "modules": {
            path: kinds[one.options.reads, one.options.writes] for path, one in adapters.items()
        },
    }


def common(model: nn.Module, kind: str) -> dict:
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name(model),
        "inference_mode": True,
    }


def write(
    model: nn.Module, config: AdapterConfig, adapters: dict[str, Adapter], plain: bool
) -> tuple[dict, dict[str, Tensor]]:
    """(adapter_config.json, tensors) that PEFT 0.21 reads. plain: one LoRA with alpha = r everywhere, for programs that know no more.

    Raises UserError, saying why, for an adapter that has no such form.
    """
    groups: dict[str, dict[str, Adapter]] = {name: {} for name in config.parts}
    for path, adapter in adapters.items():
        for _, one in parts_of("", adapter):
            groups[one.part][path] = one
    kinds = {name: part.kind for name, part in config.parts.items()}
    mains = [
        name
        for name, kind in kinds.items()
        if kind in WRITERS and (kind not in MORE or len(kinds) == 1)
    ]
    if len(mains) != 1:
        raise UserError(
            f'PEFT has no place for {config.kind} adapters in one file; format="native" keeps everything'
        )
    (name,) = mains
    kind, main = kinds[name], groups[name]
    beside = {kinds[other]: one for other, one in groups.items() if other != name}
    wrong = next((other for other in beside if other not in BESIDE.get(kind, ())), None)
    if wrong or len(beside) != len(groups) - 1:
        raise UserError(
            f'PEFT has no place for {wrong or "two parts of one kind"} beside {kind} in one file; format="native" keeps everything'
        )
    if plain:
        if beside:
            raise UserError(
                f"a plain LoRA has no place for {' and '.join(beside)} beside it; leave plain out, or merge the adapter into the weights"
            )
        return write_factors(model, kind, main, plain=True)
    if (
        kind == "dora"
        and "bitfit" in beside
        and list(kinds.values()).index("bitfit") < list(kinds.values()).index("dora")
    ):
        raise UserError(
            'PEFT does not scale the trained biases beside DoRA, as here where they come first: put that part behind it, or use format="native"'
        )
    fields, tensors = WRITERS[kind](model, kind, main)
    for other, one in beside.items():
        for path in one:
            both = [
                third
                for third, places in ({kind: main} | beside).items()
                if path in places and third != other
            ]
            if (
                both
                and not (other == "bitfit" and both == [kind])
                and not (both == ["bitfit"] and other == kind)
            ):
                raise UserError(
                    f'PEFT has no place for {other} and {both[0]} at one module ({path}); format="native" keeps everything'
                )
        more, found = MORE[other](model, one, main, beside.get("full", {}))
        fields, tensors = fields | more, tensors | found
    return fields, tensors


def most_common(values) -> object:
    return Counter(values).most_common(1)[0][0]


def number(value: float) -> float | int:
    """PEFT's alphas are whole numbers, where they are."""
    return int(value) if float(value).is_integer() else value


def write_lora(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    """LoRA and DoRA: what differs from place to place goes into rank_pattern and alpha_pattern."""
    no_gate(adapters)
    tensors = METHODS[kind].to_file(adapters)
    rslora = all(
        one.options.rslora for one in adapters.values()
    )  # there is one switch for all: otherwise it goes into alpha
    alphas = {
        path: one.options.alpha if one.options.rslora == rslora else one.scale * one.options.r
        for path, one in adapters.items()
    }
    fields = lora_fields(model, {path: one.options.r for path, one in adapters.items()}, alphas)
    fields |= {
        "lora_dropout": max(one.options.dropout for one in adapters.values()),
        "use_rslora": rslora,
        "use_dora": kind == "dora",
    }
    return bias_of_B(adapters, fields, tensors)


def lora_fields(model: nn.Module, ranks: dict[str, int], alphas: dict[str, float]) -> dict:
    r, alpha = most_common(ranks.values()), most_common(alphas.values())
    return (
        common(model, "LORA")
        | as_targets(model, list(ranks))
        | {
            "r": r,
            "lora_alpha": number(alpha),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "rank_pattern": {path: one for path, one in ranks.items() if one != r},
            "alpha_pattern": {path: number(one) for path, one in alphas.items() if one != alpha},
        }
    )


def bias_of_B(
    adapters: dict[str, Adapter], fields: dict, tensors: dict[str, Tensor]
) -> tuple[dict, dict[str, Tensor]]:
    """With lora_bias where some B has a bias: all have one there."""
    if not any(key.endswith(".lora_B.bias") for key in tensors):
        return fields, tensors
    if any(isinstance(one, EmbeddingLoRA) for one in adapters.values()):
        raise UserError(
            'PEFT has no place for biases of B beside a LoRA on the embedding; format="native" keeps everything'
        )
    zeros = {
        f"{PREFIX}{path}.lora_B.bias": one.lora_B.new_zeros(len(one.lora_B))
        for path, one in adapters.items()
    }
    return fields | {"lora_bias": True}, zeros | tensors


def no_gate(adapters: dict[str, Adapter]) -> None:
    if any(getattr(one, "lora_gate", None) is not None for one in adapters.values()):
        raise UserError(
            'a LoRA with a gate depends on the token, and PEFT has no place for that; format="native" keeps everything'
        )


def write_factors(
    model: nn.Module, kind: str, adapters: dict[str, Adapter], plain: bool = False
) -> tuple[dict, dict[str, Tensor]]:
    """Everything that adds B A x as a LoRA with s = 1; plain: all of one rank, and nothing but A and B."""
    no_gate(adapters)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, one in adapters.items():
        if isinstance(one, EmbeddingLoRA):
            keys, (A, B) = (
                ("lora_embedding_A", "lora_embedding_B"),
                (one.lora_embedding_A, one.scale * one.lora_embedding_B),
            )
        elif hasattr(one, "factors"):
            keys, (A, B) = ("lora_A.weight", "lora_B.weight"), one.factors()
        else:
            raise UserError(
                f"{kind} adapters are no product of two matrices and cannot be written as a plain LoRA"
            )
        ranks[path] = len(A)
        tensors |= {f"{PREFIX}{path}.{keys[0]}": A, f"{PREFIX}{path}.{keys[1]}": B}
        if getattr(one, "lora_B_bias", None) is not None:
            if plain:
                raise UserError(
                    "a plain LoRA has no place for the biases of B; leave plain out, or merge the adapter into the weights"
                )
            tensors[f"{PREFIX}{path}.lora_B.bias"] = one.scale * one.lora_B_bias
    if plain:
        r = max(ranks.values())
        tensors = {
            key: pad(one, (0, 0, 0, r - len(one)) if "_A" in key else (0, r - one.shape[1]))
            for key, one in tensors.items()
        }
        ranks = dict.fromkeys(ranks, r)
    fields = lora_fields(model, ranks, {path: float(r) for path, r in ranks.items()})
    if plain:
        fields = {key: value for key, value in fields.items() if not key.endswith("_pattern")}
    return bias_of_B(adapters, fields, tensors)


def write_adalora(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    """One rank and one scale for all: smaller ranks are filled up with zeros, other scales go into E."""
    init_r, first = (
        max(one.options.init_r for one in adapters.values()),
        next(iter(adapters.values())).options,
    )
    scale = first.alpha / (init_r + 1e-5)
    tensors = {}
    for path, one in adapters.items():
        more = init_r - one.options.init_r
        tensors |= {
            f"{PREFIX}{path}.lora_A": pad(one.lora_A, (0, 0, 0, more)),
            f"{PREFIX}{path}.lora_B": pad(one.lora_B, (0, more)),
            f"{PREFIX}{path}.lora_E": pad(
                one.lora_E if one.scale == scale else one.lora_E * (one.scale / scale),
                (0, 0, 0, more),
            ),
        }
    warmup, final = (
        round(first.warmup * SHARES),
        min(math.floor(first.final * SHARES), SHARES - round(first.warmup * SHARES) - 1),
    )
    return common(model, "ADALORA") | as_targets(model, list(adapters)) | {
        "init_r": init_r,
        "target_r": first.target_r,
        "lora_alpha": number(first.alpha),
        "lora_dropout": first.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "total_step": SHARES,
        "tinit": warmup,
        "tfinal": max(final, 0),
        "deltaT": first.every,
        "beta1": first.beta1,
        "beta2": first.beta2,
        "orth_reg_weight": first.orthogonality,
    }, tensors


def write_vera(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    options = next(iter(adapters.values())).options
    return common(model, "VERA") | as_targets(model, list(adapters)) | {
        "r": options.r,
        "vera_dropout": options.dropout,
        "d_initial": options.d_start,
        "projection_prng_key": options.seed,
        "save_projection": True,
        "bias": "none",
        "fan_in_fan_out": False,
    }, METHODS["vera"].to_file(adapters)


def write_ia3(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    inner = [path for path, one in adapters.items() if one.options.scales == "input"]
    names, targets = (
        leaves(inner),
        as_targets(model, list(adapters), layers=False)["target_modules"],
    )
    by_name = targets == leaves(adapters) and not any(
        path.endswith(tuple(names)) for path in adapters if path not in inner
    )
    return common(model, "IA3") | {
        "target_modules": targets if by_name else list(adapters),
        "feedforward_modules": names if by_name else inner,
        "fan_in_fan_out": False,
    }, METHODS["ia3"].to_file(adapters)


def write_ln_tuning(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    return common(model, "LN_TUNING") | as_targets(model, list(adapters), layers=False), METHODS[
        "ln_tuning"
    ].to_file(adapters)


def write_prefix(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    first = next(iter(adapters.values()))
    if len(adapters) != len(model.blocks):
        raise UserError(
            'PEFT has no place for a prefix in some of the layers; format="native" keeps everything'
        )
    width = model.shape.kv_heads * model.shape.head_size
    return common(model, "PREFIX_TUNING") | soft_fields(model, first.virtual, width) | {
        "prefix_projection": False,
        "encoder_hidden_size": width,
    }, {PROMPT: METHODS["prefix"].to_file(adapters)[PROMPT]}


def write_prompt(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    (one,) = adapters.values()
    width = model.input_embedding.out_features
    more = (
        {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": width}
        if kind == "p_tuning"
        else {"prompt_tuning_init": "RANDOM"}
    )
    return common(model, kind.upper().replace("PROMPT", "PROMPT_TUNING")) | soft_fields(
        model, one.virtual, width
    ) | more, {PROMPT: one.embeddings()}


def write_rows(
    model: nn.Module, kind: str, adapters: dict[str, Adapter]
) -> tuple[dict, dict[str, Tensor]]:
    """Rows of the embedding and nothing else; a tied head's are in the file too, as in PEFT's."""
    if model.tied and model.lm_head.bias is not None:
        raise UserError(HEAD_BIAS)
    rows = next(iter(adapters.values()))
    return common(model, "TRAINABLE_TOKENS") | {
        "target_modules": [model.outer_sites["embed"]],
        "token_indices": list(rows.options.ids),
        "init_weights": True,
    }, {f"{PREFIX}{path}.trainable_tokens_delta": rows.rows.weight for path in adapters}


def soft_fields(model: nn.Module, length: int, width: int) -> dict:
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_attention_heads": model.shape.kv_heads,
        "num_layers": len(model.blocks),
        "num_transformer_submodules": 1,
    }


WRITERS = {
    "lora": write_lora,
    "dora": write_lora,
    "pissa": write_factors,
    "adalora": write_adalora,
    "vera": write_vera,
    "ia3": write_ia3,
    "ln_tuning": write_ln_tuning,
    "prefix": write_prefix,
    "prompt": write_prompt,
    "p_tuning": write_prompt,
    "token_rows": write_rows,
}
