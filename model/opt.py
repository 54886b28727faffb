"""OPT (Zhang et al. 2022; opt-125m to opt-66b, galactica), with its adapter sites.

Attribute names are the tensor names of the published checkpoints.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from model.cache import Cache
from model.kernels import attention
from model.language import LanguageModel
from model.packing import Packing
from model.parts import ACTIVATIONS, Shape, Step, check_sizes
from model.sites import BlockOutput, Embedding, KeysValues, LayerNorm, Linear, Site
from model.tokens import Tokens

SITES = {  # the paper's place -> attribute of a Block; its last part is a name, too
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.out_proj", "up": "fc1", "down": "fc2", "attn": "attn_site",
    "mlp": "mlp_site", "kv": "self_attn.kv_site", "attn_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm", "block": "block_site",
}  # fmt: skip
OUTER_SITES = {  # the same -> attribute of the Model
    "embed": "model.decoder.embed_tokens", "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
}  # fmt: skip

PICTURE = """\
x ─┬─ [attn_norm] ─┬─ [q] ─┐
   │               ├─ [k] ─┤
   │               └─ [v] ─┴─ [kv] ─ attention ─ [o] ─ [attn] ─ + ─┐
   └────────────────────────────────────────────────────────────┘  │
┌──────────────────────────────────────────────────────────────────┘
└──┬─ [mlp_norm] ─ [up] ─ act ─ [down] ─ [mlp] ─ + ─ [block] ─ x
   └─────────────────────────────────────────────┘"""

PICTURE_350M = """\
x ─┬─┬─ [q] ─┐
   │ ├─ [k] ─┤
   │ └─ [v] ─┴─ [kv] ─ attention ─ [o] ─ [attn] ─ + ─ [attn_norm] ─┐
   └──────────────────────────────────────────────┘                │
┌──────────────────────────────────────────────────────────────────┘
└──┬─ [up] ─ act ─ [down] ─ [mlp] ─ + ─ [mlp_norm] ─ [block] ─ x
   └────────────────────────────────┘"""

SPELLINGS, ONLY, ROWS = {}, {}, {"opt": {}}
HARMLESS = {"has_no_defaults_at_init", "learned_embeddings", "output_projection"}
OFFSET = 2  # the first rows of the position table are never used


@dataclass(frozen=True)
class Config:
    """The fields of config.json that change the computation, by their published names."""

    model_type: str = "opt"
    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    num_attention_heads: int = 12
    max_position_embeddings: int = 2048
    activation_function: str = "relu"
    do_layer_norm_before: bool = True  # opt-350m: norms follow the residual add, none at the end
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None  # opt-350m: embeddings of this size are projected
    enable_bias: bool = True  # galactica-30b and -120b: no biases, and norms without weights
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True

    @property
    def shape(self) -> Shape:
        heads, positions = self.num_attention_heads, self.max_position_embeddings
        size = self.hidden_size // heads
        return Shape(self.num_hidden_layers, heads, heads, size, positions, table=True)

    @property
    def embedding_size(self) -> int:
        return self.word_embed_proj_dim or self.hidden_size

    def check(self) -> None:
        """Raise UserError for a setting these files cannot compute."""
        check_sizes(self, "hidden_size", "num_attention_heads", "activation_function")


def rename(key: str) -> str:
    """Published tensor name -> ours."""
    if key.startswith("decoder."):
        return "model." + key
    bare = key.startswith(("layers.", "embed_", "final_layer_norm.", "project_"))
    return "model.decoder." + key if bare else key


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        C, bias = config.hidden_size, config.enable_bias
        self.layer, self.head_size = layer, config.shape.head_size
        self.q_proj = Linear(C, C, bias)
        self.k_proj = Linear(C, C, bias)
        self.v_proj = Linear(C, C, bias)
        self.out_proj = Linear(C, C, bias)
        self.kv_site = KeysValues(config.num_attention_heads, config.shape.head_size)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        q = step.queries(self.q_proj(step.kept(x))).unflatten(-1, (-1, self.head_size))
        k = step.rows(self.k_proj(x)).unflatten(-1, (-1, self.head_size))
        v = step.rows(self.v_proj(x)).unflatten(-1, (-1, self.head_size))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, T, D]
        k, v, mask = self.kv_site(k, v, step.mask, step.cache, self.layer)
        return self.out_proj(step.tokens(attention(q, k, v, mask)))


class Block(nn.Module):
    """x -> norm -> attention -> [attn site] -> + -> norm -> MLP -> [mlp site] -> + (PICTURE);
    in opt-350m each norm follows its add."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        C, affine = config.hidden_size, config.layer_norm_elementwise_affine
        self.layer, self.norm_first = layer, config.do_layer_norm_before
        self.self_attn = Attention(config, layer)
        self.attn_site = Site(C)
        self.self_attn_layer_norm = LayerNorm(C, affine=affine)
        self.fc1 = Linear(C, config.ffn_dim, config.enable_bias)
        self.fc2 = Linear(config.ffn_dim, C, config.enable_bias)
        self.act = ACTIVATIONS[config.activation_function]
        self.mlp_site = Site(C)
        self.block_site = BlockOutput(C)
        self.final_layer_norm = LayerNorm(C, affine=affine)  # the MLP's, whatever its name says

    def forward(self, x: Tensor, step: Step) -> Tensor:
        h = self.self_attn_layer_norm(x) if self.norm_first else x
        attended, x, h = self.self_attn(h, step), step.kept(x), step.kept(h)
        x = x + self.attn_site(attended, h)
        if not self.norm_first:
            x = self.self_attn_layer_norm(x)
        h = self.final_layer_norm(x) if self.norm_first else x
        x = x + self.mlp_site(self.fc2(self.act(self.fc1(h))), h)
        x = x if self.norm_first else self.final_layer_norm(x)
        return self.block_site(x, step.places)


class Decoder(nn.Module):
    """Embeddings, blocks, last norm: everything the checkpoints call `model.decoder.`"""

    def __init__(self, config: Config):
        super().__init__()
        C, E = config.hidden_size, config.embedding_size
        self.embed_tokens = Embedding(config.vocab_size, E)
        self.embed_positions = Embedding(config.max_position_embeddings + OFFSET, C)
        self.project_in = Linear(E, C) if E != C else None
        self.project_out = Linear(C, E) if E != C else None
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        last = config.do_layer_norm_before and not config._remove_final_layer_norm
        self.final_layer_norm = (
            LayerNorm(C, affine=config.layer_norm_elementwise_affine) if last else None
        )


class Model(LanguageModel):
    """An OPT language model; `load_model` fills it with published weights."""

    family, sites, outer_sites = "opt", SITES, OUTER_SITES
    blocks_at = "model.decoder.layers"
    after_blocks = ("model.decoder.final_layer_norm.", "model.decoder.project_out.")

    def __init__(self, config: Config):
        super().__init__(config)
        self.picture = PICTURE if config.do_layer_norm_before else PICTURE_350M
        self.model = nn.Module()
        self.model.decoder = Decoder(config)
        self.lm_head = Linear(config.embedding_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.tie()

    def embed(self, tokens: Tokens) -> Tensor:
        decoder, x = self.model.decoder, super().embed(tokens)  # [B, T, E]
        x = x if decoder.project_in is None else decoder.project_in(x)
        positions = tokens.query_positions(limit=self.config.max_position_embeddings)
        return x + decoder.embed_positions(positions + OFFSET).to(self.dtype)

    def step(self, tokens: Tokens, cache: Cache | None) -> Step:
        return Step(tokens.causal_mask(), cache, packing=tokens.packing, places=tokens.in_prompts)

    def final(self, x: Tensor) -> Tensor:
        norm, project = self.model.decoder.final_layer_norm, self.model.decoder.project_out
        x = x if norm is None else norm(x)
        return x if project is None else project(x)

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
        x = self.real_tokens(self.final(x), tokens, cache)
        return self.logits(x) if head else x
