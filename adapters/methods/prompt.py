"""Prompt tuning (Lester et al. 2021): trained embeddings in front of every text.

    [p₁ ... pₙ; x₁ ... x_T] ── the frozen model          p [n, E], n = length

p are like the embeddings of n words. They start at random words of the vocabulary (init =
"vocabulary", the paper's second best), at a text of your own (text = "..."), or at N(0, 0.02).
`scale` multiplies the trained numbers: soft prompts want larger steps than other adapters at the
same learning rate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size, training
from adapters.tensors import Tensors
from files.errors import UserError
from model.language import LanguageModel
from model.sites import Site

KEY = "prompt_embeddings"  # PEFT's name


class SoftPrompt(Adapter):
    """[p; x], where `embeddings` gives p."""

    works_on = ("embedding",)
    starts_at_base = False
    adds = False

    def embeddings(self) -> Tensor:
        """[length, E], float32."""
        raise NotImplementedError

    def embed(self, x: Tensor, first: bool) -> Tensor:
        if not first:
            return x
        return torch.cat((self.embeddings().to(x.dtype).expand(len(x), -1, -1), x), dim=1)


class Prompt(SoftPrompt):
    """[p; x] with p = scale · a trained table."""

    @dataclass(frozen=True)
    class Options:
        length: Size = 20
        init: Literal["vocabulary", "random"] = training("vocabulary")
        text: str = training("")  # start at this text's embeddings, repeated or cut to length
        scale: float = 1.0

        def check(self) -> None:
            if self.scale == 0:
                raise UserError("scale must not be zero")

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["Prompt"]:
        pairs = zip(options, sites, strict=True)
        return [cls(o, site, text_ids(model, o.text)) for o, site in pairs]

    def __init__(self, options: Options, site: Site, ids: list[int]):
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
        return self.options.scale * self.prompt

    # ---- files, merging, sums

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        (adapter,) = adapters.values()
        return {KEY: adapter.embeddings()}

    @classmethod
    @torch.no_grad()
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        (adapter,) = adapters.values()
        tensors.take(KEY, adapter.prompt)
        adapter.prompt.div_(adapter.options.scale)


def text_ids(model: LanguageModel, text: str) -> list[int]:
    """The tokens of a text by the tokenizer in the model's folder; [] of no text.

    Raises UserError if the model has no folder, or the text no token.
    """
    if not text:
        return []
    from model.tokenizer import load_tokenizer

    if not getattr(model, "folder", None):
        raise UserError("option text needs the model's tokenizer, and this model has no folder")
    ids = load_tokenizer(str(model.folder)).encode(text, bos=False)
    if not ids:
        raise UserError(f"option text = {text!r} has no token")
    return ids
