"""The machinery around the blocks of a language model, the same for every family."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.devices import Stage, place_of
from model.parts import Cache, Step, Tokens, moved
from model.sites import Embedding


class LanguageModel(nn.Module):
    """The machinery around the blocks, the same for every family; the family's own Model is the computation.

    It brings `lm_head`; `enter(x, tokens, cache)`: embedded tokens [B, T, E] -> what the first block gets [B, T, C], and the Step that all blocks get;
    and `leave(x)`: what the last block gives [B, T, C] -> last hidden states [B, T, E].
    """

    family: str
    sites: dict[str, str]  # the paper's place -> attribute of a block
    outer_sites: dict[str, str]  # the same outside of the blocks -> attribute of the model
    picture: str
    blocks_at: str  # where in the model they are
    behind: tuple[str, ...]  # what lies behind them, but for the head
    quantize = ""  # how the weights of the Linears in the blocks are stored: as they are, or one of model.quantize.STORED_AS

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = 0  # n > 0: of every nth block keep only its input for the backward pass and compute the rest again
        self.dtype = torch.float32  # of the computation
        self.depends_on_length = False  # the angles of a token depend on how long its row is
        self.told_length = False  # `note_length` has spoken
        self.stages: tuple[
            Stage, ...
        ] = ()  # the devices that the blocks lie on, where there are several (model/devices.py)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.get_submodule(self.blocks_at)

    @property
    def device(self) -> torch.device:
        """Of the ids it takes: where its embedding is."""
        return self.input_embedding.weight.device

    def device_of(self, name: str) -> torch.device:
        """Where the tensor or module of this path belongs."""
        if not self.stages:
            return self.device
        place = place_of(self, name)
        return next(
            (stage.device for stage in self.stages if place < stage.end), self.stages[-1].device
        )

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
        devices = [
            stage.device for stage in self.stages for _ in range(stage.first, stage.end)
        ] or [self.device] * len(self.blocks)
        return Cache(batch, c.kv_heads, length, c.head_size, self.dtype, devices)

    def tokens(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None
    ) -> Tokens:
        """The tokens of a pass, with room for the virtual ones of the adapters that are on."""
        filled = cache.filled if cache else 0
        prompt = sum(adapter.virtual for adapter in self.input_embedding.active)
        prefix = max(block.get_submodule(self.sites["kv"]).virtual for block in self.blocks)
        if mask is not None and prefix + prompt:
            mask = torch.cat((mask.new_ones(len(ids), prefix + prompt), mask), dim=1)
        if filled == 0 and prompt:
            ids = torch.cat((ids.new_zeros(len(ids), prompt), ids), dim=1)
        return Tokens(
            ids, mask, positions, filled + prefix, prompt if filled == 0 else 0, prefix + prompt
        )

    def note_length(self, tokens: Tokens, limit: int) -> None:
        """Warn, once a model, of a text that is longer than the `limit` of tokens it was trained
        for. Values are looked at, which a GPU waits for, only where there are more keys."""
        given = tokens.given is not None and tokens.given.device.type == "cpu"
        if self.told_length or tokens.ids.is_meta or not (tokens.keys > limit or given):
            return
        longest = int(tokens.query_positions().max()) + 1
        if longest > limit:
            self.told_length = True
            warnings.warn(
                f"a text of {longest} tokens is longer than the {limit} that the model was trained "
                f"for (max_position_embeddings): expect worse answers, or shorten it",
                stacklevel=2,
            )

    def embed(self, tokens: Tokens) -> Tensor:
        """[B, T, E]: the rows of the embedding, and what adapters make of them and put in front."""
        site = self.input_embedding
        x = site(tokens.ids[:, tokens.prompt :]).to(self.dtype)
        for adapter in site.active:
            x = adapter.embed(x, first=tokens.prompt > 0)
        return x

    def run(self, x: Tensor, step: Step, stages: Sequence[Stage] | None = None) -> Tensor:
        """x [B, T, C] through all blocks, or through those of some stages; between stages activations move to the next device."""
        for stage in stages or self.stages or (Stage(self.device, 0, len(self.blocks)),):
            x, step = moved(x, stage.device), step.to(stage.device)
            for number in range(stage.first, stage.end):
                if (
                    self.checkpointing
                    and number % self.checkpointing == 0
                    and torch.is_grad_enabled()
                ):
                    x = checkpoint(self.blocks[number], x, step, use_reentrant=False)
                else:
                    x = self.blocks[number](x, step)
        return x

    def transform(self, x: Tensor, tokens: Tokens, cache: Cache | None) -> Tensor:
        """Embedded tokens [B, T, E] -> last hidden states [B, T, E]."""
        x, step = self.enter(x, tokens, cache)
        x = self.leave(self.run(x, step))
        if cache is not None:
            cache.filled += x.shape[1]
        return x

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Token ids [B, T] -> their last hidden states [B, T, C]; arguments as those of `forward`."""
        tokens = self.tokens(ids, mask, positions, cache)
        return self.transform(self.embed(tokens), tokens, cache)[:, tokens.prompt :]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] -> float32 logits [..., V], on the head's device."""
        for adapter in reversed(self.input_embedding.active):
            hidden = adapter.unembed(hidden)
        return self.lm_head(hidden.to(self.lm_head.weight.device)).float()

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """ids int64 [B, T], mask 1 = real token [B, past + T] -> logits [B, T, V].

        With a cache that holds `past` positions, ids are the tokens behind them. positions [B, T] (BLOOM: of all keys, [B, past + T])
        are counted from the mask unless given. Raises UserError for a position the model has not.
        """
        return self.logits(self.hidden(ids, mask, positions, cache))
