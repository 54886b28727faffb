"""What each method writes for PEFT: the fields of adapter_config.json, and the tensors."""

import math
from collections import Counter

from torch import Tensor
from torch.nn.functional import pad

from adapters.base import PREFIX
from adapters.config import METHODS
from adapters.formats.base_model import common
from adapters.formats.peft_beside import HEAD_BIAS, KEEPS, Adapters, Written
from adapters.formats.peft_options import WRITTEN, write_options
from adapters.formats.peft_places import as_targets, leaves
from adapters.methods.adalora import AdaLoRA
from adapters.methods.lora import EmbeddingLoRA, LowRank
from adapters.methods.prefix import KEY as PROMPT
from files.errors import UserError
from model.language import LanguageModel

STEPS = 1000  # AdaLoRA's schedule is in steps of the whole run there, in shares of it here


def first_of(adapters: Adapters):
    return next(iter(adapters.values()))


def most_common(values):
    return Counter(values).most_common(1)[0][0]


def whole(value: float) -> float | int:
    """PEFT's alphas are whole numbers, where they are."""
    return int(value) if float(value).is_integer() else value


def write_lora(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    """LoRA and DoRA: what differs from place to place goes into rank_pattern and alpha_pattern."""
    check_no_gate(adapters)
    options = {path: adapter.options for path, adapter in adapters.items()}
    # There is one switch for all: otherwise rsLoRA's scale goes into alpha.
    rslora = all(o.rslora for o in options.values())
    alphas = {p: o.alpha if o.rslora == rslora else o.scale * o.r for p, o in options.items()}
    fields = lora_fields(model, {path: o.r for path, o in options.items()}, alphas) | {
        "lora_dropout": max(o.dropout for o in options.values()),
        "use_rslora": rslora,
        "use_dora": kind == "dora",
    }
    return with_biases_of_B(adapters, fields, METHODS[kind].to_file(adapters))


def lora_fields(model: LanguageModel, ranks: dict[str, int], alphas: dict[str, float]) -> dict:
    r, alpha = most_common(ranks.values()), most_common(alphas.values())
    fields = common(model, "LORA") | as_targets(model, list(ranks))
    return fields | {
        "r": r,
        "lora_alpha": whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != r},
        "alpha_pattern": {path: whole(a) for path, a in alphas.items() if a != alpha},
    }


def with_biases_of_B(adapters: Adapters, fields: dict, tensors: dict[str, Tensor]) -> Written:
    """With lora_bias if some B has a bias: all have one there."""
    if not any(key.endswith(".lora_B.bias") for key in tensors):
        return fields, tensors
    if any(isinstance(adapter, EmbeddingLoRA) for adapter in adapters.values()):
        raise UserError(
            f"PEFT has no place for biases of B beside a LoRA on the embedding; {KEEPS}"
        )
    zeros = {
        f"{PREFIX}{path}.lora_B.bias": adapter.lora_B.new_zeros(len(adapter.lora_B))
        for path, adapter in adapters.items()
    }
    return fields | {"lora_bias": True}, zeros | tensors


def check_no_gate(adapters: Adapters) -> None:
    if any(getattr(adapter, "lora_gate", None) is not None for adapter in adapters.values()):
        raise UserError(
            f"a LoRA with a gate depends on the token, and PEFT has no place for that; {KEEPS}"
        )


def write_factors(
    model: LanguageModel, kind: str, adapters: Adapters, plain: bool = False
) -> Written:
    """Everything that adds B A x as a LoRA with s = 1; plain: of one rank, only A and B."""
    check_no_gate(adapters)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, adapter in adapters.items():
        at = PREFIX + path
        if isinstance(adapter, EmbeddingLoRA):
            A, B = adapter.lora_embedding_A, adapter.scale * adapter.lora_embedding_B
            tensors |= {f"{at}.lora_embedding_A": A, f"{at}.lora_embedding_B": B}
        elif isinstance(adapter, LowRank):
            A, B = adapter.factors()
            tensors |= {f"{at}.lora_A.weight": A, f"{at}.lora_B.weight": B}
        else:
            raise UserError(
                f"{kind} adapters are no product of two matrices and cannot be written as a plain "
                "LoRA"
            )
        ranks[path] = len(A)
        if getattr(adapter, "lora_B_bias", None) is not None:
            if plain:
                raise UserError(
                    "a plain LoRA has no place for the biases of B; leave plain out, or merge the "
                    "adapter into the weights"
                )
            tensors[f"{at}.lora_B.bias"] = adapter.scale * adapter.lora_B_bias
    if plain:
        r = max(ranks.values())
        for key, tensor in tensors.items():
            missing = (0, 0, 0, r - len(tensor)) if "_A" in key else (0, r - tensor.shape[1])
            tensors[key] = pad(tensor, missing)
        ranks = dict.fromkeys(ranks, r)
    fields = lora_fields(model, ranks, {path: float(r) for path, r in ranks.items()})
    if plain:
        del fields["rank_pattern"], fields["alpha_pattern"]
    return with_biases_of_B(adapters, fields, tensors)


def write_adalora(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    """One rank and one scale for all: zeros fill up smaller ranks, other scales go into E."""
    init_r = max(adapter.options.init_r for adapter in adapters.values())
    first = first_of(adapters).options
    scale = first.alpha / (init_r + 1e-5)
    tensors = {}
    for path, adapter in adapters.items():
        more = init_r - adapter.options.init_r
        E = adapter.lora_E if adapter.scale == scale else adapter.lora_E * (adapter.scale / scale)
        tensors[f"{PREFIX}{path}.lora_A"] = pad(adapter.lora_A, (0, 0, 0, more))
        tensors[f"{PREFIX}{path}.lora_B"] = pad(adapter.lora_B, (0, more))
        tensors[f"{PREFIX}{path}.lora_E"] = pad(E, (0, 0, 0, more))
    warmup = round(first.warmup * STEPS)
    fields = {theirs: getattr(first, ours) for ours, theirs in AdaLoRA.peft.items()} | {
        "init_r": init_r,
        "lora_alpha": whole(first.alpha),
        "bias": "none",
        "fan_in_fan_out": False,
        "total_step": STEPS,
        "tinit": warmup,
        "tfinal": max(min(math.floor(first.final * STEPS), STEPS - warmup - 1), 0),
    }
    return common(model, "ADALORA") | as_targets(model, list(adapters)) | fields, tensors


def write_ia3(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    inner = [path for path, adapter in adapters.items() if adapter.options.scales == "input"]
    names, rest = leaves(inner), adapters.keys() - set(inner)
    targets = as_targets(model, list(adapters), layers=False)["target_modules"]
    by_name = targets == leaves(adapters) and not any(path.endswith(tuple(names)) for path in rest)
    return common(model, "IA3") | {
        "target_modules": targets if by_name else list(adapters),
        "feedforward_modules": names if by_name else inner,
        "fan_in_fan_out": False,
    }, METHODS[kind].to_file(adapters)


def write_soft(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    """A soft prompt or a prefix, without the network that made it."""
    first = first_of(adapters)
    width = model.input_embedding.out_features
    if kind == "prefix":
        if len(adapters) != len(model.blocks):
            raise UserError(f"PEFT has no place for a prefix in some of the layers; {KEEPS}")
        width = model.shape.kv_heads * model.shape.head_size
        peft_type = "PREFIX_TUNING"
        more = {"prefix_projection": False, "encoder_hidden_size": width}
    elif kind == "p_tuning":
        more = {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": width}
        peft_type = "P_TUNING"
    else:
        peft_type, more = "PROMPT_TUNING", {"prompt_tuning_init": "RANDOM"}
    table = METHODS[kind].to_file(adapters)[PROMPT]
    return common(model, peft_type) | {
        "num_virtual_tokens": first.virtual,
        "token_dim": width,
        "num_attention_heads": model.shape.kv_heads,
        "num_layers": len(model.blocks),
        "num_transformer_submodules": 1,
    } | more, {PROMPT: table}


def write_rows(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    """Rows of the embedding and nothing else; a tied head's are in the file too, as in PEFT's."""
    if model.tied and model.lm_head.bias is not None:
        raise UserError(HEAD_BIAS)
    rows = first_of(adapters)
    return common(model, "TRAINABLE_TOKENS") | {
        "target_modules": [model.outer_sites["embed"]],
        "token_indices": list(rows.options.ids),
        "init_weights": True,
    }, {f"{PREFIX}{path}.trainable_tokens_delta": rows.rows.weight for path in adapters}


WRITERS = {
    **dict.fromkeys(("lora", "dora", "eva", "loftq"), write_lora),
    "pissa": write_factors, "adalora": write_adalora,
    **dict.fromkeys(WRITTEN, write_options),
    **dict.fromkeys(("prefix", "prompt", "p_tuning"), write_soft),
    "ia3": write_ia3, "token_rows": write_rows,
}  # fmt: skip
