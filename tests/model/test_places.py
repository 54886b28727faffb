"""Where the queries of a pass stand in their prompts (`Tokens.places`), worked out by hand."""

import pytest
import torch

from model.tokens import Tokens

# two virtual tokens, a pad and three tokens; no pad and four
MASK = [[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("prompts", "left"), [(None, [[1, 0], [1, 0]]), ([2, 4], [[0, -1], [1, 0]])]
)
@pytest.mark.parametrize("given", ["a mask", "starts"])
def test_queries_after_a_cache(given, prompts, left):
    """The last two tokens of each row, of which `left` come after in its prompt."""
    ids = torch.zeros(2, 2, dtype=torch.long)
    mask = torch.tensor(MASK) if given == "a mask" else None
    starts = torch.tensor([3, 4]) if given == "starts" else None  # virtual ones, 1 or 2 tokens
    tokens = Tokens(ids, mask, None, past=4, virtual=2, starts=starts)
    found = tokens.places(None if prompts is None else torch.tensor(prompts))
    numbers = [[1, 2], [2, 3]]
    assert found[..., 0].tolist() == numbers
    assert found[..., 1].tolist() == left
