"""BLOOM (Le Scao et al. 2022; bloom-560m to bloom, bloomz), with its adapter sites.

Positions are not embedded: each head's scores are lowered by the distance (ALiBi). One Linear makes
q, k and v. Attribute names are the tensor names of the published checkpoints.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from files.errors import UserError
from model.cache import Cache
from model.kernels import attention
from model.language import LanguageModel
from model.packing import Packing
from model.parts import Shape, Step, check_sizes
from model.sites import BlockOutput, Embedding, KeysValues, LayerNorm, Linear, Site
from model.tokens import Tokens

SITES = {  # the paper's place -> attribute of a Block; its last part is a name, too
    "qkv": "self_attention.query_key_value", "o": "self_attention.dense",
    "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h", "attn": "attn_site",
    "mlp": "mlp_site", "kv": "self_attention.kv_site", "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm", "block": "block_site",
}  # fmt: skip
OUTER_SITES = {  # the same -> attribute of the Model
    "embed": "transformer.word_embeddings", "embed_norm": "transformer.word_embeddings_layernorm",
    "final_norm": "transformer.ln_f", "head": "lm_head",
}  # fmt: skip

PICTURE = """\
x ─┬─ [attn_norm] ─ [qkv] ─ [kv] ─ attention + distance ─ [o] ─ [attn] ─ + ─┐
   └─────────────────────────────────────────────────────────────────────┘  │
┌───────────────────────────────────────────────────────────────────────────┘
└──┬─ [mlp_norm] ─ [up] ─ gelu ─ [down] ─ [mlp] ─ + ─ [block] ─ x
   └──────────────────────────────────────────────┘"""

SPELLINGS = {  # other names of the fields below
    "n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
}  # fmt: skip
HARMLESS = set(
    "attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi "
    "skip_bias_add skip_bias_add_qkv".split()
)
ONLY, ROWS = {}, {"bloom": {}}


@dataclass(frozen=True)
class Config:
    """The fields of config.json that change the computation, by their published names."""

    model_type: str = "bloom"
    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    layer_norm_epsilon: float = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    slow_but_exact: bool = False
    pretraining_tp: int = 1
    tie_word_embeddings: bool = True

    @property
    def shape(self) -> Shape:
        return Shape(self.n_layer, self.n_head, self.n_head, self.hidden_size // self.n_head, None)

    def check(self) -> None:
        """Raise UserError for a setting these files cannot compute."""
        check_sizes(self, "hidden_size", "n_head")
        if self.slow_but_exact and self.pretraining_tp > 1:
            wrong = "slow_but_exact with pretraining_tp above 1 is not supported; set it to false"
            raise UserError(f"config.json: {wrong}")


@functools.cache  # a copy to a GPU makes a pass wait
def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """Penalty per token of distance for each head [H] (Press et al. 2022): 2^(-8i/H).

    If H is not a power of two: those of the power below, then every second of the power above.
    """
    power = 2 ** math.floor(math.log2(heads))
    first, second = (2 ** -(2 ** -(math.log2(n) - 3)) for n in (power, 2 * power))
    slopes = torch.tensor(first) ** torch.arange(1, power + 1)
    between = torch.tensor(second) ** torch.arange(1, 2 * (heads - power) + 1, 2)
    return torch.cat((slopes, between)).to(device)


def alibi(config: Config, keys: Tensor, queries: Tensor, looks: Tensor) -> Tensor:
    """What is added to the scores [B, H, T, S]: -slope x distance, and -inf where `looks` is False.

    Positions of keys [B, S] and queries [B, T]; looks bool [B or 1, 1, T, S]. Distance is counted
    from the query, which does not change the softmax: small distances stay exact in bfloat16.
    """
    slopes = alibi_slopes(config.n_head, keys.device)
    distance = keys[:, None, None, :] - queries[:, None, :, None]
    return (slopes[:, None, None] * distance).masked_fill_(~looks, -math.inf)


def rename(key: str) -> str:
    """Published tensor name -> ours."""
    return "transformer." + key if key.startswith(("h.", "word_embeddings", "ln_f.")) else key


class Attention(nn.Module):
    """Causal self-attention; the rows of the fused weight are [heads, (q, k, v), D]."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        C = config.hidden_size
        self.layer, self.heads = layer, config.n_head
        self.query_key_value = Linear(C, 3 * C, bias=True)
        self.dense = Linear(C, C, bias=True)
        self.kv_site = KeysValues(config.n_head, config.shape.head_size)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        qkv = step.rows(self.query_key_value(x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each [B, H, T, D]
        k, v, mask = self.kv_site(k, v, step.mask, step.cache, self.layer)
        return self.dense(step.tokens(attention(q, k, v, mask)))


class MLP(nn.Module):
    """down(gelu(up(x))), with the tanh approximation of gelu."""

    def __init__(self, config: Config):
        super().__init__()
        C = config.hidden_size
        self.dense_h_to_4h = Linear(C, 4 * C, bias=True)
        self.dense_4h_to_h = Linear(4 * C, C, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class Block(nn.Module):
    """x -> norm -> attention -> [attn site] -> + -> norm -> MLP -> [mlp site] -> + (PICTURE)"""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, C, eps = layer, config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = LayerNorm(C, eps)
        self.self_attention = Attention(config, layer)
        self.attn_site = Site(C)
        self.post_attention_layernorm = LayerNorm(C, eps)
        self.mlp = MLP(config)
        self.mlp_site = Site(C)
        self.block_site = BlockOutput(C)
        self.residual_is_normed = config.apply_residual_connection_post_layernorm

    def forward(self, x: Tensor, step: Step) -> Tensor:
        h = self.input_layernorm(x)
        attended, x, h = self.self_attention(h, step), step.kept(x), step.kept(h)
        x = (h if self.residual_is_normed else x) + self.attn_site(attended, h)
        h = self.post_attention_layernorm(x)
        x = (h if self.residual_is_normed else x) + self.mlp_site(self.mlp(h), h)
        return self.block_site(x, step.places)


class Decoder(nn.Module):
    """Embedding and its norm, blocks, last norm: what the checkpoints may call `transformer.`"""

    def __init__(self, config: Config):
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)


class Model(LanguageModel):
    """A BLOOM language model; `load_model` fills it with published weights."""

    family, sites, outer_sites, picture = "bloom", SITES, OUTER_SITES, PICTURE
    blocks_at, after_blocks = "transformer.h", ("transformer.ln_f.",)

    def __init__(self, config: Config):
        super().__init__(config)
        self.transformer = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.tie()

    def embed(self, tokens: Tokens) -> Tensor:
        return self.transformer.word_embeddings_layernorm(super().embed(tokens))

    def step(self, tokens: Tokens, cache: Cache | None) -> Step:
        keys, T = tokens.positions(), tokens.ids.shape[1]
        queries = keys[:, -T:] if tokens.starts is None else tokens.query_positions()
        if tokens.mask is None and tokens.given is None and tokens.starts is None:
            keys, queries = keys[:1], queries[:1]  # those of every row
        bias = alibi(self.config, keys, queries, tokens.may_look())
        return Step(bias.to(self.dtype), cache, packing=tokens.packing, places=tokens.in_prompts)

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
        x = self.real_tokens(self.transformer.ln_f(x), tokens, cache)
        return self.logits(x) if head else x
