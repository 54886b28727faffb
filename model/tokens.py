"""The tokens of one pass: their positions, and which keys each may look at.

Letters used for shapes: B batch, T query length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from files.errors import UserError
from model.packing import Packing


def check_ids(rows: Iterable[Sequence[int]], size: int) -> None:
    """Raise UserError for an id without a row in an embedding of `size` rows.

    A GPU would end the whole process at its next operation, with an assertion of the device.
    """
    for row in rows:
        if row and not 0 <= min(row) <= max(row) < size:
            wrong = min(row) if min(row) < 0 else max(row)
            raise UserError(f"token id {wrong}: the model's embedding has the ids 0 to {size - 1}")


@dataclass
class Tokens:
    """The tokens of one pass, with the virtual tokens that adapters put in front of every row.

    Prompt tuning adds queries: `prompt` placeholders in front of ids, in the first pass of a row.
    Prefix tuning adds only keys.
    """

    ids: Tensor  # [B, T], the first `prompt` of each row are placeholders
    mask: Tensor | None  # [B, past + T], 1 = real token or virtual; None: all are
    given: Tensor | None  # positions that the caller wants for the real tokens
    past: int  # keys in front of the first query: virtual and cached ones
    prompt: int = 0  # virtual tokens in this pass
    virtual: int = 0  # virtual tokens in front of the real ones, in this pass or before
    packing: Packing | None = None  # which of them the blocks get
    # [B], the position of each row's first query, where rows of a static cache differ in it; their
    # keys lie at their positions, and `past` is that of the longest
    starts: Tensor | None = None
    in_prompts: Tensor | None = None  # `places`, packed where there is `packing`; None: not needed

    @property
    def keys(self) -> int:
        """The number of keys, those of this pass included."""
        return self.past + self.ids.shape[1]

    def positions(self) -> Tensor:
        """The positions of all keys so far [B, past + T].

        Tokens are counted from 0, virtual ones first; a pad has the position of the token before
        it, or 0.
        """
        B, T = self.ids.shape
        if self.given is not None:
            which = "all {} tokens so far, cached ones too,"
            return self.with_virtual(self.virtual, self.past + T - self.virtual, which)
        if self.mask is None:
            return torch.arange(self.past + T, device=self.ids.device).expand(B, -1)
        return (self.mask.long().cumsum(dim=1) - 1).clamp_(min=0)

    def query_positions(self, limit: int | None = None) -> Tensor:
        """The positions of the T queries [B, T]. Raises UserError for one of `limit` or more."""
        T = self.ids.shape[1]
        if self.starts is not None:  # who gave them has seen to the limit of all but pads
            positions = self.starts[:, None] + torch.arange(T, device=self.ids.device)
            return positions if limit is None or T == 1 else positions.clamp(max=limit - 1)
        if self.given is None:
            positions = self.positions()[:, -T:]
        else:
            which = "the {} tokens of this pass"
            positions = self.with_virtual(self.prompt, T - self.prompt, which)
        if limit is not None:
            plain = self.given is None and self.mask is None  # no need to read the values
            last = self.past + T - 1 if plain else -1 if positions.is_meta else int(positions.max())
            if last >= limit:
                raise UserError(
                    f"position {last} is past the model's last, {limit - 1}: the text is too long "
                    "for it"
                )
        return positions

    def places(self, prompts: Tensor | None) -> Tensor:
        """Where the queries stand in their prompts, int64 [B, T, 2].

        The first number counts a row's real tokens from 0, the second how many tokens of its prompt
        come after; it is negative behind the prompt. prompts [B]: real tokens of each prompt, those
        in the cache too; None: all so far. Virtual tokens and pads before them count below 0.
        """
        T, B = self.ids.shape[1], len(self.ids)
        if self.starts is not None:
            positions = self.starts[:, None] + torch.arange(T, device=self.ids.device)
        elif self.mask is not None:
            positions = self.mask.long().cumsum(dim=1)[:, -T:] - 1
        else:
            positions = torch.arange(self.past, self.keys, device=self.ids.device).expand(B, -1)
        numbers = positions - self.virtual
        if prompts is None:
            prompts = numbers[:, -1] + 1
        return torch.stack((numbers, prompts.to(numbers)[:, None] - 1 - numbers), dim=-1)

    def with_virtual(self, virtual: int, real: int, which: str) -> Tensor:
        """The given positions [B, real] after those of the last `virtual` virtual tokens."""
        if self.given.shape[1] != real:
            raise UserError(
                f"the positions of {which.format(real)} are needed; {self.given.shape[1]} are given"
            )
        front = torch.arange(self.virtual - virtual, self.virtual, device=self.ids.device)
        front = front.expand(len(self.ids), -1)
        return torch.cat((front, self.given + self.virtual), dim=1)

    def may_look(self, window: int | None = None) -> Tensor:
        """Which keys each query may look at, bool [B or 1, 1, T, past + T].

        These are real tokens, no later than the query and less than `window` keys before it. A
        query always sees itself, so that the rows of pads stay finite.
        """
        T, device = self.ids.shape[1], self.ids.device
        if self.starts is not None:
            keys = torch.arange(self.keys, device=device)
            queries = self.query_positions()[:, None, :, None]
            order = keys <= queries
            return order if window is None else order & (keys > queries - window)
        order = torch.ones(1, 1, T, self.past + T, dtype=torch.bool, device=device).tril(self.past)
        if window is not None:
            columns = self.columns()
            order = order & (columns[:, None, None, :] > columns[:, None, -T:, None] - window)
        if self.mask is None:
            return order
        itself = torch.eye(T, self.past + T, dtype=torch.bool, device=device)
        return (order & self.mask.bool()[:, None, None, :]) | itself.roll(self.past, dims=1)

    def columns(self) -> Tensor:
        """The column of every key for the window, [B or 1, past + T].

        Virtual keys count as directly in front of the first real token, so that pads between them
        take no place in the window.
        """
        columns = torch.arange(self.keys, device=self.ids.device)[None]
        if self.mask is None or self.virtual == 0:
            return columns
        pads = (self.mask[:, self.virtual :].cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        return columns + pads * (columns < self.virtual)

    def causal_mask(self) -> Tensor | None:
        """`may_look`, or None if the attention is plain causal: no pads, no past or one query."""
        plain = self.mask is None and self.starts is None
        if plain and (self.past == 0 or self.ids.shape[1] == 1):
            return None
        return self.may_look()
