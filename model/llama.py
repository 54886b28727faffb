"""LLaMA (Touvron et al. 2023; Llama 2, Llama 3, TinyLlama, SmolLM2): the whole model, with its adapter sites.

Attribute names are the tensor names of the published checkpoints.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.errors import UserError
from model.parts import Cache, Linear, RMSNorm, Site, Step, attention, causal_mask, rotary_angles, rotate_halves, token_positions

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}

SITES = {  # the paper's place -> attribute of a Block; the last part may be named as well (q_proj)
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    "attn": "attn_site", "mlp": "mlp_site",
}

PICTURE = """\
x ─┬─ norm ─┬─ [q] ─ rotary ─┐
   │        ├─ [k] ─ rotary ─┤
   │        └─ [v] ──────────┴─ attention ─ [o] ─ [attn] ─ + ─┬─ norm ─┬─ [gate] ─ act ─ × ─ [down] ─ [mlp] ─ + ─ x
   └───────────────────────────────────────────────────────┘  │        └─ [up] ──────────┘                    │
                                                              └───────────────────────────────────────────────┘"""


@dataclass(frozen=True)
class Config:
    """The fields of config.json that change the computation, by their published names."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: one per attention head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def check(self) -> None:
        """Raise UserError for a setting these files cannot compute."""
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"config.json: hidden_act {self.hidden_act!r} is not supported; there is: {', '.join(ACTIVATIONS)}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise UserError(f"config.json: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}")
        if self.num_attention_heads % self.kv_heads:
            raise UserError(f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads {self.kv_heads}")
        if self.head_size % 2:
            raise UserError(f"config.json: head_dim {self.head_size} is odd; rotary positions need pairs")
        rope_frequencies(self)


def rope_frequencies(config: Config, device=None) -> Tensor:
    """Inverse frequencies theta^(-2i/D) [D/2], float32, with the checkpoint's context extension.

    Raises UserError for an extension other than `linear` (Chen et al. 2023) and `llama3` (Llama 3.1).
    """
    D = config.head_size
    inv_freq = config.rope_theta ** -(torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return inv_freq
    if kind in ("linear", "llama3") and not scaling["factor"] > 0:
        raise UserError(f"config.json: rope factor {scaling['factor']} must be positive")
    if kind == "linear":
        return inv_freq / scaling["factor"]
    if kind == "llama3":  # long wavelengths are stretched by `factor`, short ones kept, a smooth band between
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        old_length = scaling.get("original_max_position_embeddings", config.max_position_embeddings)
        turns = old_length * inv_freq / (2 * math.pi)  # rotations within the old context
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * inv_freq + (1 - keep) * inv_freq / scaling["factor"]
    raise UserError(f"config.json: rope type {kind!r} is not supported; there is: default, linear, llama3")


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
        self.layer, self.head_size = layer, D
        self.q_proj = Linear(C, config.num_attention_heads * D, bias)
        self.k_proj = Linear(C, config.kv_heads * D, bias)
        self.v_proj = Linear(C, config.kv_heads * D, bias)
        self.o_proj = Linear(config.num_attention_heads * D, C, bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # [B, H, T, D]
        k = self.k_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # [B, K, T, D]
        v = self.v_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)
        q, k = rotate_halves(q, step.cos, step.sin), rotate_halves(k, step.cos, step.sin)
        if step.cache is not None:
            k, v = step.cache.update(self.layer, k, v)
        return self.o_proj(attention(q, k, v, step.mask))


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
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x -> norm -> attention -> [attn site] -> + -> norm -> MLP -> [mlp site] -> +   (PICTURE above draws all sites)"""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.attn_site = Site(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.mlp_site = Site(config.hidden_size)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        h = self.input_layernorm(x)
        x = x + self.attn_site(self.self_attn(h, step), h)  # a site sees output and input; empty, it returns the output
        h = self.post_attention_layernorm(x)
        return x + self.mlp_site(self.mlp(h), h)


class Decoder(nn.Module):
    """Embedding, blocks, last norm: everything the checkpoints call `model.`"""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Model(nn.Module):
    """A LLaMA language model; `load_model` fills it with published weights."""

    family, sites, picture = "llama", SITES, PICTURE

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.checkpointing = False  # True: keep only each block's input for the backward pass and compute the rest again
        self.dtype = torch.float32  # of the computation

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def input_embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    def untie(self) -> None:
        """Give the output head a weight of its own."""
        self.lm_head = Linear(self.config.hidden_size, self.config.vocab_size)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens."""
        c = self.config
        return Cache(c.num_hidden_layers, batch, c.kv_heads, length, c.head_size, self.dtype, self.model.embed_tokens.weight.device)

    def hidden(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Token ids [B, T] -> last hidden states [B, T, C]. With a cache that holds P positions, mask is [B, P + T]."""
        B, T = ids.shape
        past = cache.filled if cache is not None else 0
        if positions is None:
            positions = token_positions(mask, B, T, past, ids.device)
        cos, sin = rotary_angles(rope_frequencies(self.config, ids.device), positions, self.dtype)
        step = Step(cos, sin, causal_mask(mask, T, past, ids.device), cache)
        x = self.model.embed_tokens(ids).to(self.dtype)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, step, use_reentrant=False)
            else:
                x = block(x, step)
        if cache is not None:
            cache.filled += T
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] -> float32 logits [..., V]."""
        if self.lm_head is not None:
            return self.lm_head(hidden).float()
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype)).float()

    def forward(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """ids int64 [B, T], mask 1 = real token [B, T] -> logits [B, T, V]; positions default to cumsum(mask) - 1, pads 0."""
        return self.logits(self.hidden(ids, mask, positions, cache))
