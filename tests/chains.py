"""A model for tests whose greedy text is given: each token is followed by one of a table."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [
    "<s>",
    "</s>",
    "<turn>",
    "<pad>",
    "ask",
    "say",
    "red",
    "green",
    "blue",
    ".",
    "\n",
    "<other>",
]
IDS = {word: number for number, word in enumerate(WORDS)}
SPECIAL = ["<s>", "</s>", "<turn>", "<pad>", "<other>"]
CHATML = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <turn> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def chain(
    folder: Path,
    said: str,
    *,
    config: dict | None = None,
    generation: dict | None = None,
    tokenizer: dict | None = None,
    chat: str | None = None,
) -> Path:
    """A LLaMA whose greedy text, after the first word of `said`, is the rest of it; a word each id.

    A word may come once only; the last one is repeated for ever. The vocabulary is WORDS. config,
    generation, tokenizer: more for config.json, all of generation_config.json, more for
    tokenizer_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, words = len(WORDS), said.split(" ")
    raw = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": size,
        "hidden_size": size, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw | (config or {})))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    head = torch.zeros(size, size)
    for before, after in zip(words, [*words[1:], words[-1]], strict=True):
        head[IDS[after], IDS[before]] = 5.0
    layer = {
        "self_attn.q_proj": (size, size), "self_attn.k_proj": (size, size),
        "self_attn.v_proj": (size, size), "self_attn.o_proj": (size, size),
        "mlp.gate_proj": (4, size), "mlp.up_proj": (4, size), "mlp.down_proj": (size, 4),
    }  # fmt: skip
    weights = {f"model.layers.0.{name}.weight": torch.zeros(shape) for name, shape in layer.items()}
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        weights[f"model.{name}.weight"] = torch.ones(size)
    weights |= {"model.embed_tokens.weight": torch.eye(size), "lm_head.weight": head}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    inner = Tokenizer(models.WordLevel(IDS, unk_token="<other>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    inner.add_special_tokens(SPECIAL)
    inner.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<other>"}
    names |= {"chat_template": chat} if chat else {}
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(names | (tokenizer or {})))
    return folder
