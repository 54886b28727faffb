"""Prompt tuning (Lester et al. 2021): trained embeddings in front of every text.

    [p₁ ... pₙ; x₁ ... x_T] ── the frozen model          n = length; p [n, E], as if they were the embeddings of n words

They start at random words of the vocabulary (init = "vocabulary", the paper's second best), at a text of your own (text = "..."), or at N(0, 0.02).
`scale` multiplies the trained numbers: soft prompts want larger steps than other adapters at the same learning rate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size, Tensors
from files.errors import UserError

KEY = "prompt_embeddings"


class Prompt(Adapter):
    """[p; x]."""

    works_on = ("embedding",)
    starts_at_base = False
    adds = False

    @dataclass(frozen=True)
    class Options:
        length: Size = 20
        init: Literal["vocabulary", "random"] = "vocabulary"
        text: str = ""  # start at the embeddings of this text, repeated or cut to length
        scale: float = 1.0

        def check(self) -> None:
            if self.scale == 0:
                raise UserError("scale must not be zero")

    @classmethod
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list["Prompt"]:
        return [
            cls(one, site, text_ids(model, one.text))
            for one, site in zip(options, sites, strict=True)
        ]

    def __init__(self, options: Options, site: nn.Module, ids: list[int]):
        super().__init__()
        self.options, self.virtual = options, options.length
        start = 0.02 * torch.randn(options.length, site.out_features)
        chosen = torch.randint(site.in_features, (options.length,))
        if ids:
            chosen = torch.tensor((ids * options.length)[: options.length])
        if (ids or options.init == "vocabulary") and not site.weight.is_meta:
            start = site.weight.detach()[chosen.to(site.weight.device)].float().cpu()
        self.prompt = nn.Parameter(start / options.scale)

    def embeddings(self) -> Tensor:
        """[length, E], float32."""
        return self.options.scale * self.prompt

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return (
            torch.cat((self.embeddings().to(x.dtype).expand(len(x), -1, -1), x), dim=1)
            if first
            else x
        )

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        (one,) = adapters.values()
        return {KEY: one.embeddings()}

    @classmethod
    @torch.no_grad()
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        (one,) = adapters.values()
        made = torch.empty_like(one.prompt)
        tensors.take(KEY, made)
        one.prompt.copy_(made / one.options.scale)


def text_ids(model: nn.Module, text: str) -> list[int]:
    """The tokens of a text by the tokenizer that lies beside the model's weights; none of no text."""
    if not text:
        return []
    from model.tokenizer import load_tokenizer

    if not hasattr(model, "folder"):
        raise UserError("option text needs the model's tokenizer, and this model has no folder")
    ids = load_tokenizer(str(model.folder)).encode(text, bos=False)
    if not ids:
        raise UserError(f"option text = {text!r} has no token")
    return ids
