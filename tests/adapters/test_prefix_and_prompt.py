"""Prefixes, prompts and what sits at the embedding, against what they must come to."""

import pytest
import torch
from methods import IDS, randomise

from adapters import attach, parameters, use
from adapters.attach import adapters_named
from adapters.config import resolve
from model import load_model, load_tokenizer


def test_a_prefix_of_a_texts_own_keys_and_values_is_that_text(any_tiny):
    """Whatever the family does with positions: keys of real tokens, put in front as a prefix, act
    as these tokens did.
    """
    front, rest = IDS[:1, :3], IDS[:1, 3:]
    cache = any_tiny.new_cache(1, 3)
    any_tiny(front, cache=cache)
    whole = any_tiny(IDS[:1])[:, 3:]
    attach(any_tiny, "prefix", length=3, scale=10.0)
    for layer, adapter in enumerate(adapters_named(any_tiny, "default").values()):
        keys, values = (
            kept[layer][0].transpose(0, 1).flatten(1) for kept in (cache.keys, cache.values)
        )  # [3, K * D]
        adapter.prefix.data = torch.cat((keys, values), dim=1) / 10
    torch.testing.assert_close(any_tiny(rest), whole, rtol=1e-4, atol=1e-4)
    padded = torch.cat((torch.zeros(1, 2, dtype=torch.long), rest), dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(any_tiny(padded, mask)[:, 2:], whole, rtol=1e-4, atol=1e-4)


def test_a_prefix_in_some_layers_only(any_tiny):
    """Layers without a prefix do not see the columns made for those with one."""
    base = any_tiny(IDS)
    attach(any_tiny, "prefix", length=3, layers=[1], init=1.0)
    changed = any_tiny(IDS)
    assert not torch.allclose(changed, base, atol=1e-2)
    cache = any_tiny.new_cache(2, 7)
    steps = [any_tiny(IDS[:, :5], cache=cache), any_tiny(IDS[:, 5:], cache=cache)]
    torch.testing.assert_close(torch.cat(steps, dim=1), changed, rtol=1e-4, atol=1e-4)


def test_a_prefix_projection_is_one_table_and_a_part_of_an_mlp_for_each_layer(tiny):
    attach(tiny, "prefix-projection", length=4, projection=6)
    adapters = list(adapters_named(tiny, "default").values())
    assert len({id(adapter.table) for adapter in adapters}) == 1
    assert sum(p.numel() for p in parameters(tiny)) == 4 * 6 + 3 * 2 * 16 * 6
    randomise(tiny)
    torch.testing.assert_close(
        adapters[1].pairs(), torch.tanh(adapters[0].table.weight) @ adapters[1].project.T
    )


@pytest.mark.parametrize("preset", ["prompt", "p-tuning", "p-tuning-lstm"])
def test_a_prompt_of_real_words_is_these_words(any_tiny, preset):
    """Embeddings of real tokens in front act as these tokens, whatever the family does with
    positions and norms.
    """
    whole = any_tiny(IDS)[:, 3:]
    attach(any_tiny, preset, length=3)
    for row in range(2):
        any_tiny.input_embedding.adapters["default"].embeddings = lambda row=row: (
            any_tiny.input_embedding.weight[IDS[row, :3]]
        )
        torch.testing.assert_close(
            any_tiny(IDS[row : row + 1, 3:]), whole[row : row + 1], rtol=1e-4, atol=1e-4
        )


def test_where_prompts_start():
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "prompt", length=3, scale=2.0)
    prompt = model.input_embedding.adapters["default"].embeddings()
    assert all(
        (model.input_embedding.weight == row).all(dim=1).any() for row in prompt
    )  # words of the vocabulary
    attach(model, "prompt", name="text", length=5, text="Tom has")
    ids = load_tokenizer("pocket-llama").encode("Tom has", bos=False)
    torch.testing.assert_close(
        model.input_embedding.adapters["text"].prompt,
        model.input_embedding.weight[torch.tensor((ids * 5)[:5])],
    )


def test_invertible_is_undone(any_tiny):
    attach(any_tiny, "invertible")
    randomise(any_tiny)
    adapter = any_tiny.input_embedding.adapters["default"]
    x = torch.randn(2, 3, 32)
    changed = adapter.embed(x, first=True)
    assert not torch.allclose(changed, x, atol=0.1)
    torch.testing.assert_close(adapter.unembed(changed), x, rtol=1e-4, atol=1e-4)
    one, two = x.chunk(2, dim=-1)
    y = one + torch.relu(two @ adapter.F_down.T) @ adapter.F_up.T
    torch.testing.assert_close(
        changed, torch.cat((y, two + torch.relu(y @ adapter.G_down.T) @ adapter.G_up.T), dim=-1)
    )


def test_several_input_adapters_are_undone_in_the_other_order(tiny):
    attach(tiny, "invertible", name="one")
    attach(tiny, "invertible", name="two", reduction=4)
    randomise(tiny)
    one, two = (tiny.input_embedding.adapters[name] for name in ("one", "two"))
    h = torch.randn(1, 2, 32)
    expected = tiny.lm_head(one.unembed(two.unembed(h)))
    torch.testing.assert_close(tiny.logits(h), expected)
    attach(
        tiny,
        resolve(one={"preset": "invertible"}, two={"preset": "invertible", "reduction": 4.0}),
        name="both",
    )  # the same as a mixture
    for part, alone in zip(
        tiny.input_embedding.adapters["both"].parts.values(), (one, two), strict=True
    ):
        part.load_state_dict(alone.state_dict())
    use(tiny, ["both"])
    torch.testing.assert_close(tiny.logits(h), expected)
