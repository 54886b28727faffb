"""The base class of the four families: their sites, cache, devices and checkpointing.

A family's own Model has the computation: `forward`, and what it calls (`embed`, `step`, `final`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.cache import Cache
from model.packing import Packing
from model.parts import Shape, Step
from model.placed import Placed, Stage, moved
from model.sites import Embedding, Linear
from model.slots import Slots
from model.tokens import Tokens


def call_block(block: nn.Module, x: Tensor, step: Step) -> Tensor:
    """A block's output; model/compiled.py puts a compiled form of this in its place."""
    return block(x, step)


class LanguageModel(Placed):
    """A decoder-only language model, what all families have in common.

    B batch, T tokens of a pass, V vocabulary, C hidden size; E size of the embedding (C but in
    opt-350m).
    """

    # Of the family: class attributes that its Model sets.
    family: str  # "llama", "bloom", "opt" or "gptj"
    sites: dict[str, str]  # site -> attribute of a block, such as "q" -> "self_attn.q_proj"
    outer_sites: dict[str, str]  # site -> attribute of the model, such as "embed"
    picture: str  # a block drawn with its sites
    blocks_at: str  # path of the blocks, such as "model.layers"
    after_blocks: tuple[str, ...]  # prefixes of what comes after the blocks, without the head

    # Of the checkpoint: load_model sets them.
    config: Any  # the family's Config
    folder: Path | None  # where it was loaded from; None: not from a folder
    fingerprint: str  # a hash of the weights, which adapters are saved with; "" before loading
    dtype: torch.dtype  # of the computation
    quantize: str  # of the Linears in the blocks: "" or a name in STORED_AS
    stages: tuple[Stage, ...]  # the devices the blocks lie on, if several (model/devices.py)

    # Of the run.
    checkpointing: int  # n > 0: recompute every nth block in the backward pass; 0: none
    decode_memory: str  # "auto", "packed" or "plain": packed copies of weights (model/packed.py)
    graphs: bool  # on a GPU the decoding step is a CUDA graph (model/graphs.py)
    call: Callable[[nn.Module, Tensor, Step], Tensor]  # computes a block's output
    adapters_on: tuple[list, list[str] | None]  # active entries in order, trained names (None: all)

    lm_head: Linear  # C -> V
    depends_on_length: bool  # whether a token's rotary angles depend on the length of its row

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.folder, self.fingerprint = None, ""
        self.dtype, self.quantize, self.stages = torch.float32, "", ()
        self.checkpointing, self.adapters_on, self.call = 0, ([], None), call_block
        self.decode_memory, self.graphs = "auto", True
        self.depends_on_length = False
        self.warned_of_length = False

    @property
    def shape(self) -> Shape:
        """Its sizes, under the same names for every family."""
        return self.config.shape

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
        return Cache(batch, *self.cache_sizes(length))

    def new_slots(self, slots: int, length: int, virtual: int | None = None) -> Slots:
        """A static cache for `slots` rows at a time, of at most `length` tokens each.

        virtual: the most virtual tokens and keys in front of a row, where rows differ in it.
        """
        if virtual is None:
            return Slots(slots, *self.cache_sizes(length))
        return Slots(slots, *self.sizes(length + virtual), [0] * len(self.blocks))

    def cache_sizes(self, length: int) -> tuple:
        """The arguments of `Cache` after the first."""
        return *self.sizes(length + self.prompt_length), self.virtual_keys()

    def sizes(self, columns: int) -> tuple:
        layers = range(len(self.blocks))
        devices = [self.device_at(i) if self.stages else self.device for i in layers]
        return self.shape.kv_heads, columns, self.shape.head_size, self.dtype, devices

    @property
    def prompt_length(self) -> int:
        """The virtual tokens that active adapters put before the embedded ones (prompt tuning)."""
        return sum(adapter.virtual for adapter in self.input_embedding.active)

    @property
    def prefix_length(self) -> int:
        """The virtual keys that active adapters put before the others (prefix tuning)."""
        return max(self.virtual_keys())

    def virtual_keys(self) -> list[int]:
        """Of each layer, how many keys active adapters put before the others."""
        return [block.get_submodule(self.sites["kv"]).virtual for block in self.blocks]

    def tokens(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None,
        packing: Packing | None = None, prompts: Tensor | None = None,
    ) -> Tokens:  # fmt: skip
        """The tokens of a pass (arguments as in `forward`) with the virtual ones of adapters."""
        filled = cache.filled if cache else 0
        if isinstance(cache, Slots):  # virtual ones are columns of its rows
            return Tokens(ids, mask, positions, filled, 0, 0, packing, cache.starts)
        prompt, prefix = self.prompt_length, self.prefix_length
        virtual = prefix + prompt
        if mask is not None and virtual:
            mask = torch.cat((mask.new_ones(len(ids), virtual), mask), dim=1)
        if filled:
            tokens = Tokens(ids, mask, positions, filled + prefix, 0, virtual, packing)
        else:
            if prompt:
                ids = torch.cat((ids.new_zeros(len(ids), prompt), ids), dim=1)
            tokens = Tokens(ids, mask, positions, prefix, prompt, virtual, packing)
        if self.block_adapters() and (prompts is not None or not filled):
            places = tokens.places(prompts)
            tokens.in_prompts = packing.pack(places) if packing else places
        return tokens

    def block_adapters(self) -> list:
        """The active adapters at the outputs of blocks, which look at places in the prompt."""
        at = self.sites["block"]
        return [adapter for block in self.blocks for adapter in block.get_submodule(at).active]

    @property
    def prompt_ends(self) -> int:
        """How many of a prompt's last tokens are computed as such: no other row can share them."""
        return max((adapter.ends for adapter in self.block_adapters()), default=0)

    def embed(self, tokens: Tokens) -> Tensor:
        """The input of the first block [B, T, C]; adapters change it and put virtual tokens first.

        Here the rows of the embedding [B, T, E]; families do more.
        """
        embedding = self.input_embedding
        x = embedding(tokens.ids[:, tokens.prompt :]).to(self.dtype)
        for adapter in embedding.active:
            x = adapter.embed(x, first=tokens.prompt > 0)
        return x

    def step(self, tokens: Tokens, cache: Cache | None) -> Step:
        """What every block of a pass gets besides x: masks, cache, rotary angles."""
        raise NotImplementedError

    def run(self, block: nn.Module, x: Tensor, step: Step) -> Tensor:
        """x [B, T, C] through one block, on the block's device.

        With `checkpointing` only the block's input is kept for the backward pass.
        """
        if self.stages:
            device = self.device_at(block.layer)
            x, step = moved(x, device), step.to(device)
        if block.layer == self.shape.layers - 1:
            step = step.last()
        every = self.checkpointing
        if every and block.layer % every == 0 and torch.is_grad_enabled():
            return checkpoint(self.call, block, x, step, use_reentrant=False)
        return self.call(block, x, step)

    def final(self, x: Tensor) -> Tensor:
        """The last block's output [B, T, C] -> last hidden states [B, T, E]."""
        return self.get_submodule(self.outer_sites["final_norm"])(x)

    def real_tokens(self, x: Tensor, tokens: Tokens, cache: Cache | None) -> Tensor:
        """x [B, T, E] at the end of a pass without the virtual tokens; the cache is T longer.

        Packed tokens [1, L, E] stay as they are.
        """
        if cache is not None:
            cache.advance(x.shape[1])
        return x if tokens.packing else x[:, tokens.prompt :]

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> logits [..., V] in the model's dtype, on the head's device."""
        for adapter in reversed(self.input_embedding.active):
            hidden = adapter.unembed(hidden)
        return self.lm_head(hidden.to(self.lm_head.weight.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> float32 logits [..., V], on the head's device."""
        return self.head(hidden).float()

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
        cache: Cache | None = None, packing: Packing | None = None, prompts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Last hidden states [B, T, E], from which `logits` makes logits; arguments: `forward`."""
        return self(ids, mask, positions, cache, False, packing, prompts)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
        cache: Cache | None = None, head: bool = True, packing: Packing | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Token ids -> logits float32 [B, T, V], or with head=False last hidden states [B, T, E].

        ids: int64 [B, T]; with a cache that holds `past` tokens, those after them
        mask: [B, past + T], 1 = real token, 0 = pad; None: all are real
        positions: [B, T] (BLOOM: of all keys, [B, past + T]); None: counted from the mask
        prompts: int64 [B], how many of a row's real tokens are its prompt, those in the cache too;
            None: all of a first pass. Only adapters at a block's output look at it
        packing: blocks compute some of the tokens only; [1, L, ...] of them are returned
        Raises UserError for a position that the model does not have.
        """
        raise NotImplementedError
