"""The machinery around the blocks of a language model, the same for every family."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.parts import Cache, Step, Tokens
from model.sites import Embedding


class LanguageModel(nn.Module):
    """The machinery around the blocks, the same for every family; the family's own Model is the computation.

    It brings `lm_head`, and `transform(x, tokens, cache)`: embedded tokens [B, T, E] -> last hidden states [B, T, C].
    """

    family: str
    sites: dict[str, str]  # the paper's place -> attribute of a block
    outer_sites: dict[str, str]  # the same outside of the blocks -> attribute of the model
    picture: str
    blocks_at: str  # where in the model they are
    quantize = ""  # how the weights of the Linears in the blocks are stored: as they are, or one of model.quantize.STORED_AS

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # True: keep only each block's input for the backward pass and compute the rest again
        self.dtype = torch.float32  # of the computation

    @property
    def blocks(self) -> nn.ModuleList:
        return self.get_submodule(self.blocks_at)

    @property
    def input_embedding(self) -> Embedding:
        return self.get_submodule(self.outer_sites["embed"])

    def tie(self) -> None:
        """Let the output head use the embedding's weight."""
        self.lm_head.weight = self.input_embedding.weight

    @property
    def tied(self) -> bool:
        return self.lm_head.weight is self.input_embedding.weight

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens."""
        c = self.config
        length += sum(adapter.virtual for adapter in self.input_embedding.active)
        return Cache(len(self.blocks), batch, c.kv_heads, length, c.head_size, self.dtype, self.input_embedding.weight.device)

    def tokens(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None) -> Tokens:
        """The tokens of a pass, with room for the virtual ones of the adapters that are on."""
        filled = cache.filled if cache else 0
        prompt = sum(adapter.virtual for adapter in self.input_embedding.active)
        prefix = max(block.get_submodule(self.sites["kv"]).virtual for block in self.blocks)
        if mask is not None and prefix + prompt:
            mask = torch.cat((mask.new_ones(len(ids), prefix + prompt), mask), dim=1)
        if filled == 0 and prompt:
            ids = torch.cat((ids.new_zeros(len(ids), prompt), ids), dim=1)
        return Tokens(ids, mask, positions, filled + prefix, prompt if filled == 0 else 0, prefix + prompt)

    def embed(self, tokens: Tokens) -> Tensor:
        """[B, T, E]: the rows of the embedding, and what adapters make of them and put in front."""
        site = self.input_embedding
        x = site(tokens.ids[:, tokens.prompt :]).to(self.dtype)
        for adapter in site.active:
            x = adapter.embed(x, first=tokens.prompt > 0)
        return x

    def run(self, x: Tensor, step: Step) -> Tensor:
        """x [B, T, C] through all blocks."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, step, use_reentrant=False)
            else:
                x = block(x, step)
        if step.cache is not None:
            step.cache.filled += x.shape[1]
        return x

    def hidden(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Token ids [B, T] -> their last hidden states [B, T, C]; arguments as those of `forward`."""
        tokens = self.tokens(ids, mask, positions, cache)
        return self.transform(self.embed(tokens), tokens, cache)[:, tokens.prompt :]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] -> float32 logits [..., V]."""
        for adapter in reversed(self.input_embedding.active):
            hidden = adapter.unembed(hidden)
        return self.lm_head(hidden).float()

    def forward(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """ids int64 [B, T], mask 1 = real token [B, past + T] -> logits [B, T, V].

        With a cache that holds `past` positions, ids are the tokens behind them. positions [B, T] (BLOOM: of all keys, [B, past + T])
        are counted from the mask unless given. Raises UserError for a position the model has not.
        """
        return self.logits(self.hidden(ids, mask, positions, cache))
