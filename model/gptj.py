"""GPT-J (Wang & Komatsuzaki 2021; gpt-j-6b): the whole model, with its adapter sites.

Attention and MLP are parallel, after one norm; part of each head rotates with the position.
Attribute names are the tensor names of the published checkpoints.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from files.errors import UserError
from model.cache import Cache
from model.kernels import attention
from model.language import LanguageModel
from model.packing import Packing
from model.parts import ACTIVATIONS, Shape, Step, check_sizes
from model.rope import rotary_angles, rotate_pairs
from model.sites import BlockOutput, Embedding, KeysValues, LayerNorm, Linear, Site
from model.tokens import Tokens

SITES = {  # the paper's place -> attribute of a Block; its last part is a name, too
    "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
    "up": "mlp.fc_in", "down": "mlp.fc_out", "attn": "attn_site", "mlp": "mlp_site",
    "kv": "attn.kv_site", "norm": "ln_1", "block": "block_site",
}  # fmt: skip
OUTER_SITES = {"embed": "transformer.wte", "final_norm": "transformer.ln_f", "head": "lm_head"}

PICTURE = """\
x ─┬─ [norm] ─┬─ [q] ─ rotary ─┐
   │          ├─ [k] ─ rotary ─┤
   │          ├─ [v] ──────────┴─ [kv] ─ attention ─ [o] ─ [attn] ─ + ─ [block] ─ x
   │          └─ [up] ─ act ─ [down] ─ [mlp] ───────────────────────┤
   └────────────────────────────────────────────────────────────────┘"""

SPELLINGS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
HARMLESS, ONLY, ROWS = set(), {"rotary": True}, {"gptj": {}}


@dataclass(frozen=True)
class Config:
    """The fields of config.json that change the computation, by their published names."""

    model_type: str = "gptj"
    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64  # of each head; the rest is not rotated
    n_inner: int | None = None  # None: 4 * n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False

    @property
    def shape(self) -> Shape:
        heads = self.n_head
        size = self.n_embd // heads
        return Shape(self.n_layer, heads, heads, size, self.n_positions, table=True)

    def check(self) -> None:
        """Raise UserError for a setting these files cannot compute."""
        check_sizes(self, "n_embd", "n_head", "activation_function")
        size = self.shape.head_size
        if self.rotary_dim > size or self.rotary_dim % 2:
            wrong = f"rotary_dim {self.rotary_dim} must be even and at most the head's {size}"
            raise UserError(f"config.json: {wrong}")


def rename(key: str) -> str | None:
    """Published tensor name -> ours; None for the masks that old files carry."""
    if re.search(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$", key):
        return None
    return "transformer." + key if key.startswith(("h.", "wte.", "ln_f.")) else key


class Attention(nn.Module):
    """Causal self-attention; the first rotary_dim of each head's D dimensions rotate, in pairs."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        C = config.n_embd
        self.layer, self.rotary_dim = layer, config.rotary_dim
        self.head_size = config.shape.head_size
        self.q_proj = Linear(C, C)
        self.k_proj = Linear(C, C)
        self.v_proj = Linear(C, C)
        self.out_proj = Linear(C, C)
        self.kv_site = KeysValues(config.n_head, config.shape.head_size)

    def rotate(self, x: Tensor, step: Step) -> Tensor:
        turned = rotate_pairs(x[..., : self.rotary_dim], step.cos, step.sin)
        return torch.cat((turned, x[..., self.rotary_dim :]), dim=-1)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        q = step.queries(self.q_proj(step.kept(x))).unflatten(-1, (-1, self.head_size))
        k = step.rows(self.k_proj(x)).unflatten(-1, (-1, self.head_size))
        v = step.rows(self.v_proj(x)).unflatten(-1, (-1, self.head_size))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, T, D]
        q, k = self.rotate(q, step), self.rotate(k, step)
        k, v, mask = self.kv_site(k, v, step.mask, step.cache, self.layer)
        # float32: its scores overflow float16
        return self.out_proj(step.tokens(attention(q, k, v, mask, float32=True)))


class MLP(nn.Module):
    """out(act(in(x)))."""

    def __init__(self, config: Config):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.fc_in = Linear(config.n_embd, inner, bias=True)
        self.fc_out = Linear(inner, config.n_embd, bias=True)
        self.act = ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(self.act(self.fc_in(x)))


class Block(nn.Module):
    """x -> norm -> attention -> [attn site] and MLP -> [mlp site], both added to x (see PICTURE)"""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer = layer
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.attn_site = Site(config.n_embd)
        self.mlp = MLP(config)
        self.mlp_site = Site(config.n_embd)
        self.block_site = BlockOutput(config.n_embd)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        h = self.ln_1(x)
        attended, x, h = self.attn(h, step), step.kept(x), step.kept(h)
        x = x + self.attn_site(attended, h) + self.mlp_site(self.mlp(h), h)
        return self.block_site(x, step.places)


class Decoder(nn.Module):
    """Embedding, blocks, last norm: everything the checkpoints call `transformer.`"""

    def __init__(self, config: Config):
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)


class Model(LanguageModel):
    """A GPT-J language model; `load_model` fills it with published weights."""

    family, sites, outer_sites, picture = "gptj", SITES, OUTER_SITES, PICTURE
    blocks_at, after_blocks = "transformer.h", ("transformer.ln_f.",)

    def __init__(self, config: Config):
        super().__init__(config)
        self.transformer = Decoder(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=True)
        if config.tie_word_embeddings:
            self.tie()

    def step(self, tokens: Tokens, cache: Cache | None) -> Step:
        R, device = self.config.rotary_dim, tokens.ids.device
        inv_freq = 10000.0 ** -(torch.arange(0, R, 2, dtype=torch.float32, device=device) / R)
        positions = tokens.query_positions(limit=self.config.n_positions)
        cos, sin = rotary_angles(inv_freq, positions, self.dtype)
        return Step(
            tokens.causal_mask(), cache, cos, sin, packing=tokens.packing, places=tokens.in_prompts
        )

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
