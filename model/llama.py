"""LLaMA (Touvron et al. 2023; Llama 2, Llama 3, TinyLlama, SmolLM2) and three models that differ
from it in one thing each, with their adapter sites:

    mistral   a query sees only the last `sliding_window` keys (Jiang et al. 2023)
    qwen2     q, k and v have biases, o has none (Qwen2, Qwen2.5: Yang et al. 2024)
    qwen3     q and k of each head are normed before they rotate (Yang et al. 2025)

Attribute names are the tensor names of the published checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import Cache
from model.fast import SwiGLU
from model.kernels import attention
from model.language import LanguageModel
from model.llama_config import PICTURE_QK_NORMS, QK_NORMS, ROWS, Config, window_of
from model.packing import Packing
from model.parts import ACTIVATIONS, Step
from model.rope import rope_angles, rotate_halves
from model.rope_scaling import depends_on_length, warn_of_length
from model.sites import BlockOutput, Embedding, KeysValues, Linear, RMSNorm, Site
from model.tokens import Tokens

SITES = {  # the paper's place -> attribute of a Block; its last part is a name, too
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj", "attn": "attn_site", "mlp": "mlp_site", "kv": "self_attn.kv_site",
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "block": "block_site",
}  # fmt: skip
OUTER_SITES = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}

PICTURE = """\
x ─┬─ [attn_norm] ─┬─ [q] ─ rotary ─┐
   │               ├─ [k] ─ rotary ─┤
   │               └─ [v] ──────────┴─ [kv] ─ attention ─ [o] ─ [attn] ─ + ─┐
   └─────────────────────────────────────────────────────────────────────┘  │
┌───────────────────────────────────────────────────────────────────────────┘
└──┬─ [mlp_norm] ──┬─ [gate] ─ act ─┐
   │               └─ [up] ─────────× ─ [down] ─ [mlp] ─ + ─ [block] ─ x
   └─────────────────────────────────────────────────────┘"""

__all__ = ["ROWS", "Config", "Model"]
SPELLINGS = {}  # other names of the fields below
HARMLESS = {"is_llama_config", "pretraining_tp"}  # fields that change nothing here
ONLY = {"use_rope": True, "rope": True}  # fields known in one value


def rename(key: str) -> str | None:
    """Published tensor name -> ours; None for what files carry and the model computes itself."""
    if key.endswith("rotary_emb.inv_freq"):
        return None
    if key.startswith(("layers.", "embed_tokens.", "norm.")):  # saved from the bare decoder
        return "model." + key
    return key


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K key/value heads serve H query heads."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        C, D, bias = config.hidden_size, config.head_size, config.attention_bias
        qkv_bias = bias or config.model_type == "qwen2"
        self.layer, self.head_size, self.window = layer, D, window_of(config, layer)
        self.q_proj = Linear(C, config.num_attention_heads * D, qkv_bias)
        self.k_proj = Linear(C, config.kv_heads * D, qkv_bias)
        self.v_proj = Linear(C, config.kv_heads * D, qkv_bias)
        self.o_proj = Linear(config.num_attention_heads * D, C, bias)
        self.has_norms = config.model_type == "qwen3"
        if self.has_norms:
            self.q_norm = RMSNorm(D, config.rms_norm_eps)
            self.k_norm = RMSNorm(D, config.rms_norm_eps)
        self.kv_site = KeysValues(config.kv_heads, D)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        # [B, T, H or K, D] each
        q = step.queries(self.q_proj(step.kept(x))).unflatten(-1, (-1, self.head_size))
        k = step.rows(self.k_proj(x)).unflatten(-1, (-1, self.head_size))
        v = step.rows(self.v_proj(x)).unflatten(-1, (-1, self.head_size))
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, D]
        q, k = rotate_halves(q, step.cos, step.sin), rotate_halves(k, step.cos, step.sin)
        mask = step.window_mask if self.window else step.mask
        k, v, mask = self.kv_site(k, v, mask, step.cache, self.layer)
        return self.o_proj(step.tokens(attention(q, k, v, mask)))


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, SwiGLU)."""

    def __init__(self, config: Config):
        super().__init__()
        C, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(C, inner, bias)
        self.up_proj = Linear(C, inner, bias)
        self.down_proj = Linear(inner, C, bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.act is F.silu and torch.is_grad_enabled():
            return self.down_proj(SwiGLU.apply(gate, up))
        return self.down_proj(self.act(gate) * up)


class Block(nn.Module):
    """x -> norm -> attention -> [attn site] -> + -> norm -> MLP -> [mlp site] -> + (PICTURE)"""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.attn_site = Site(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.mlp_site = Site(config.hidden_size)
        self.block_site = BlockOutput(config.hidden_size)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        h = self.input_layernorm(x)
        attended, x, h = self.self_attn(h, step), step.kept(x), step.kept(h)
        x = x + self.attn_site(attended, h)  # an empty site returns its first input
        h = self.post_attention_layernorm(x)
        return self.block_site(x + self.mlp_site(self.mlp(h), h), step.places)


class Decoder(nn.Module):
    """Embedding, blocks, last norm: everything the checkpoints call `model.`"""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Model(LanguageModel):
    """A LLaMA language model; `load_model` fills it with published weights."""

    family, sites, outer_sites, picture = "llama", SITES, OUTER_SITES, PICTURE
    blocks_at, after_blocks = "model.layers", ("model.norm.",)

    def __init__(self, config: Config):
        super().__init__(config)
        if config.model_type == "qwen3":
            self.sites, self.picture = SITES | QK_NORMS, PICTURE_QK_NORMS
        self.depends_on_length = depends_on_length(config)
        self.model = Decoder(config)
        self.window = max(block.self_attn.window or 0 for block in self.model.layers)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.tie()

    def step(self, tokens: Tokens, cache: Cache | None) -> Step:
        warn_of_length(self, tokens)
        cos, sin = rope_angles(self.config, tokens.query_positions(), self.dtype)
        mask = tokens.causal_mask()
        slides = 0 < self.window < tokens.keys  # in some layers, and beyond some keys
        window_mask = tokens.may_look(self.window) if slides else mask
        return Step(mask, cache, cos, sin, window_mask, tokens.packing, tokens.in_prompts)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
        cache: Cache | None = None, head: bool = True, packing: Packing | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """ids [B, T] -> logits [B, T, V]; arguments: see LanguageModel."""
        tokens = self.tokens(ids, mask, positions, cache, packing, prompts)
        step = self.step(tokens, cache)
        x = step.tokens(self.embed(tokens))  # [B, T, C]
        for block in self.blocks:
            x = self.run(block, x, step)
        x = self.real_tokens(self.model.norm(x), tokens, cache)
        return self.logits(x) if head else x
