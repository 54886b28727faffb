"""Some rows of the embedding are trained, for new words (PEFT's trainable_token_indices).

    token i of `ids` ── its own trained row ── ...          all other tokens have the base's

The rows start at the base's. Where the head is tied to the embedding it has the same rows, so that
the sites are ["embed", "head"] there.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter, Folded
from files.errors import UserError
from files.typed import Range
from model.language import LanguageModel
from model.sites import Site


class TokenRows(Adapter):
    """E[i] of some tokens i replaced; in a tied head their logits are made of the same rows."""

    works_on = ("Linear", "embedding")

    @dataclass(frozen=True)
    class Options:
        ids: tuple[Annotated[int, Range(0)], ...] = ()  # token ids

        def check(self) -> None:
            if not self.ids or len(set(self.ids)) != len(self.ids):
                raise UserError(f"ids = {list(self.ids)!r} should be token ids, each once")

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["TokenRows"]:
        embedding, head = model.input_embedding, model.lm_head
        if {id(site) for site in sites} != {id(embedding)} | ({id(head)} if model.tied else set()):
            where = 'sites = ["embed"]: the head has a weight of its own'
            if model.tied:
                where = 'sites = ["embed", "head"]: the head is tied to the embedding'
            raise UserError(f"the rows of tokens are trained at {where}")
        if max(options[0].ids) >= embedding.in_features:
            raise UserError(f"ids: the model has token ids 0 to {embedding.in_features - 1}")
        index = torch.tensor(options[0].ids)
        start = embedding.weight.detach()[index.to(embedding.weight.device)].float().clone()
        rows = nn.Module()  # one for both sites
        rows.register_buffer("index", index, persistent=False)
        rows.weight = nn.Parameter(start)
        return [cls(o, rows) for o in options]

    def __init__(self, options: Options, rows: nn.Module):
        super().__init__()
        self.options, self.rows = options, rows

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        index = self.rows.index
        if f.kind == "embedding":
            at = (x[..., None] == index).int()  # [B, T, n], where a token is one of them
            rows = F.embedding(at.argmax(dim=-1), self.rows.weight.to(y.dtype))
            return torch.where(at.any(dim=-1, keepdim=True), rows, y)
        return y.index_add(-1, index, self.linear(x, self.rows.weight - f.weight[index].float()))

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        if f.site.kind != "embedding":  # there the rows replace whatever was there
            f.check_base(self, "weight")
        return replace(f, weight=f.weight.index_copy(0, self.rows.index, self.rows.weight))

    def start(self, site: Site) -> dict[str, Tensor]:
        return {"rows.weight": site.weight.detach()[self.rows.index].float()}

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        path = next(path for path in adapters if path != "lm_head")
        return {f"{PREFIX}{path}.token_adapter.trainable_tokens_delta": adapters[path].rows.weight}
