"""Invertible adapters (MAD-X, Pfeiffer et al. 2020b, section 4.2.2): embeddings changed and back.

    embedding x = [x₁, x₂] ──  y₁ = x₁ + F(x₂),  y₂ = x₂ + G(y₁)  ── blocks ── h
    head        h = [h₁, h₂] ──  z₂ = h₂ - G(h₁),  z₁ = h₁ - F(z₂)  ── output head

The coupling is NICE (Dinh et al. 2015). F and G are bottlenecks U act(D ·) on half of the features
each; U is zero at first, so training starts at the base. No biases.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.methods.bottleneck import ACTIVATIONS
from files.typed import Range
from model.sites import Site


class Invertible(Adapter):
    """A coupling of the two halves of the embedding, and its inverse on the last hidden states."""

    works_on = ("embedding",)
    adds = False

    @dataclass(frozen=True)
    class Options:
        # the bottleneck's width is half of the features divided by this
        reduction: Annotated[float, Range(0, open=True)] = 2.0
        act: Literal[*ACTIVATIONS] = "relu"

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.act = options, ACTIVATIONS[options.act]
        first = site.out_features // 2
        second = site.out_features - first
        size = max(1, round(first / options.reduction))
        self.sizes = (first, second)
        self.F_down = nn.Parameter(torch.empty(size, second))
        self.F_up = nn.Parameter(torch.zeros(first, size))
        self.G_down = nn.Parameter(torch.empty(size, first))
        self.G_up = nn.Parameter(torch.zeros(second, size))
        for down in (self.F_down, self.G_down):
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def F(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.linear(x, self.F_down)), self.F_up)

    def G(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.linear(x, self.G_down)), self.G_up)

    def embed(self, x: Tensor, first: bool) -> Tensor:
        x1, x2 = x.split(self.sizes, dim=-1)
        y1 = x1 + self.F(x2)
        return torch.cat((y1, x2 + self.G(y1)), dim=-1)

    def unembed(self, h: Tensor) -> Tensor:
        h1, h2 = h.split(self.sizes, dim=-1)
        z2 = h2 - self.G(h1)
        return torch.cat((h1 - self.F(z2), z2), dim=-1)
