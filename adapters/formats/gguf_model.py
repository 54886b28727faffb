"""Models and LoRAs as GGUF files, which llama.cpp and Ollama run.

A file holds fields (architecture, sizes, tokenizer) and tensors. Three things lie otherwise than
in a checkpoint:

- LLaMA's rotary pairs are neighbours (0, 1) (2, 3) ... instead of halves (0, D/2) (1, D/2 + 1) ...,
  so that the rows of q and k are reordered within each head (not those of qwen2 and qwen3);
- the rows of BLOOM's fused weight are [(q, k, v), heads, D] instead of [heads, (q, k, v), D];
- every fixed rope_scaling is a tensor, by which llama.cpp divides the frequencies, and a factor on
  cos and sin.
"""

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from adapters.attach import in_order
from adapters.base import PREFIX
from adapters.formats.base_model import base_name
from adapters.formats.gguf_files import DTYPES, Entry, Fields, load_gguf, write_file
from adapters.formats.gguf_tokenizer import tokenizer_fields
from adapters.formats.peft_write import plain_lora
from files.errors import UserError
from files.reading import read_json, resolve_inside
from model.language import LanguageModel
from model.llama_config import window_of
from model.rope_scaling import depends_on_length, rope_frequencies, rope_type, trained_length
from model.sites import base_parameters
from model.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
                 "bloom": "bloom"}  # fmt: skip
QKV = ("attn_q", "attn_k", "attn_v")
BIASES = {  # architecture -> where llama.cpp adds a bias
    "llama": {*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down"},
    "qwen2": {*QKV},
    "qwen3": set(),
    "bloom": {"token_embd_norm", "attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up",
              "ffn_down", "output_norm"},
}  # fmt: skip
BLOOM_LENGTH = 2048  # tokens BLOOM was trained on, where config.json does not say it


def check_model(model: LanguageModel) -> str:
    """llama.cpp's architecture. Raises UserError for what it does not compute."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UserError(
            f"llama.cpp has no {config.model_type} models: use export --for transformers, or "
            "python run.py merge and vLLM"
        )
    scaling = rope_type(getattr(config, "rope_scaling", None) or {})
    wrong = {}
    if model.family == "bloom":
        wrong["apply_residual_connection_post_layernorm"] = (
            config.apply_residual_connection_post_layernorm
        )
    else:
        width = config.num_attention_heads * config.head_size
        wrong = {
            f"hidden_act {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
            f"rope type {scaling}": depends_on_length(config)
            or (scaling != "default" and architecture != "llama"),
            f"head_dim {config.head_size}": architecture == "qwen2" and width != config.hidden_size,
        }
    if refused := [what for what, holds in wrong.items() if holds]:
        raise UserError(
            f"llama.cpp does not compute {' and '.join(refused)} of a {config.model_type} model: "
            "use export --for transformers"
        )
    return architecture


def write_model(
    model: LanguageModel, tokenizer: Tokenizer, path: Path, template: str | None
) -> None:
    """Write the model without its adapters as a GGUF file; template: the Jinja chat template.

    Raises UserError as `check_model`, `tokenizer_fields` and `write_file` do.
    """
    architecture = check_model(model)
    fields = {
        "general.type": "model",
        "general.name": base_name(model),
        "general.file_type": DTYPES[model.input_embedding.weight.dtype][1],
    }
    fields |= {f"{architecture}.{key}": value for key, value in sizes(model).items()}
    fields |= tokenizer_fields(tokenizer, model.config.vocab_size, template)
    tensors: dict[str, Entry] = {}
    for key, parameter in base_parameters(model).items():
        module, _, leaf = key.rpartition(".")
        name = name_of(model, module)
        if leaf == "bias" and name.split(".")[-1] not in BIASES[architecture]:
            raise UserError(
                f"llama.cpp has no place for {key}, which merging an adapter has made: use "
                "export --for transformers"
            )
        tensors[f"{name}.{leaf}"] = (parameter, partial(reordered, model, module))
    scaling, factor = rope_of(model)
    if scaling is not None:
        fields[f"{architecture}.rope.scaling.attn_factor"] = factor
        tensors["rope_freqs.weight"] = (scaling, lambda tensor: tensor)
    write_file(path, architecture, fields, tensors)


def sizes(model: LanguageModel) -> Fields:
    """What llama.cpp needs to know of an architecture."""
    config, shape = model.config, model.shape
    fields: Fields = {
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "block_count": len(model.blocks),
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
    }
    if model.family == "bloom":
        raw = read_json(resolve_inside(model.folder, "config.json"))
        return fields | {
            "context_length": raw.get("seq_length") or BLOOM_LENGTH,
            "feed_forward_length": 4 * config.hidden_size,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "attention.max_alibi_bias": 8.0,  # slopes 2^(-8i/H)
        }
    # llama.cpp has no window in these architectures: up to its length nothing is cut off
    windows = [window_of(config, layer) for layer in range(len(model.blocks))]
    return fields | {
        "context_length": min([trained_length(config), *filter(None, windows)]),
        "feed_forward_length": config.intermediate_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": shape.head_size,
        "rope.freq_base": float(config.rope_theta),
    }


def rope_of(model: LanguageModel) -> tuple[Tensor | None, float]:
    """(by what rope_scaling divides each frequency [D/2], its factor on cos and sin)."""
    config = model.config
    if rope_type(getattr(config, "rope_scaling", None) or {}) == "default":
        return None, 1.0
    frequencies, factor = rope_frequencies(config, torch.zeros(1, 1))
    D = config.head_size
    return config.rope_theta ** -(torch.arange(0, D, 2) / D) / frequencies, factor


@cache
def names(architecture: str, blocks: int):
    """llama.cpp's names of modules, as the gguf package has them."""
    gguf = load_gguf()
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], blocks)


def name_of(model: LanguageModel, module: str) -> str:
    """llama.cpp's name of a module. Raises UserError if it has none."""
    known = names(ARCHITECTURES[model.config.model_type], len(model.blocks))
    name = known.get_name(module.removeprefix("transformer."))
    if name is None:
        raise UserError(f"llama.cpp has no place for {module}")
    return name


def reordered(model: LanguageModel, module: str, tensor: Tensor) -> Tensor:
    """A module's weight, bias or B with its rows as llama.cpp has them."""
    last = module.rpartition(".")[2]
    if last == "query_key_value":
        parts = tensor.unflatten(0, (model.shape.heads, 3, -1))
        return parts.transpose(0, 1).reshape(tensor.shape)
    if last in ("q_proj", "k_proj") and ARCHITECTURES[model.config.model_type] == "llama":
        heads = model.shape.heads if last == "q_proj" else model.shape.kv_heads
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    return tensor


def lora_of(model: LanguageModel) -> dict[str, Tensor]:
    """The tensors of the loaded adapter as a LoRA with alpha = r, by PEFT's names.

    Raises UserError for what llama.cpp cannot add to a base.
    """
    names = in_order(model)
    if len(names) != 1 or not isinstance(names[0], str):
        raise UserError("llama.cpp takes one LoRA in a file: combine makes one of several adapters")
    otherwise = "use --gguf merged where it can be merged, or export --for transformers"
    _, tensors = plain_lora(model, names[0], "llama.cpp", otherwise)
    shared = [model.outer_sites["head"], model.outer_sites["embed"]]
    wrong = next((key for key in tensors if any(site in key for site in shared)), None)
    if model.tied and wrong:
        raise UserError(
            f"llama.cpp has no place for {wrong} in a model whose head is its embedding: use "
            "--gguf merged"
        )
    return tensors


def write_lora(model: LanguageModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the loaded adapter as a GGUF file. Raises UserError as `lora_of` does."""
    architecture = check_model(model)
    tensors: dict[str, Entry] = {}
    ranks = set()
    for key, tensor in lora_of(model).items():
        module, _, leaf = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if leaf == "lora_embedding_A":
            tensor = tensor.T  # llama.cpp looks up its rows
        end = leaf.replace("embedding_", "").lower()
        if end == "lora_b":
            ranks.add(tensor.shape[1])
            tensor = reordered(model, module, tensor)
        name = f"{name_of(model, module)}.weight.{end}"
        tensors[name] = (tensor.to(dtype), lambda tensor: tensor)
    (rank,) = ranks
    fields = {
        "general.type": "adapter",
        "general.name": f"LoRA of {base_name(model)}",
        "general.file_type": DTYPES[dtype][1],
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    write_file(path, architecture, fields, tensors)
