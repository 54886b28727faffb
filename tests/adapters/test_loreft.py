"""LoReFT against its formula, in plain loops, however rows are padded, packed and cached."""

import pytest
import torch
from conftest import write_checkpoint
from methods import IDS, attach_small, randomise

from adapters import Rows, attach, use
from adapters.attach import adapters_named
from data.batches import Example, batch_of
from eval.engine import Engine
from eval.likelihood import log_likelihoods
from eval.prefill import read
from eval.requests import Request
from model import load_model
from train.loss import summed_loss

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
FIRST, LAST = 2, 3


def by_formula(folder, model, ids, mask, prompts) -> torch.Tensor:
    """The logits of the base with eq. 2 (or 3) at its blocks, token by token."""
    base = load_model(str(folder))
    for block, adapter in zip(base.blocks, adapters_named(model, "default").values(), strict=True):

        def change(module, inputs, h, adapter=adapter):
            R, W, b = adapter.rotation(), adapter.reft_W, adapter.reft_b
            h = h.clone()
            for row, count in enumerate(prompts):
                text = mask[row].nonzero()[:, 0].tolist()[:count]  # columns of the prompt
                for column in {*text[:FIRST], *text[len(text) - LAST :]}:
                    x = h[row, column]
                    inner = W @ x + b
                    if adapter.options.form == "loreft":
                        torch.testing.assert_close(R @ R.T, torch.eye(len(R)))
                        inner = inner - R @ x
                    h[row, column] = x + R.T @ inner
            return h

        block.register_forward_hook(change)
    return base(ids, mask)


@pytest.mark.parametrize("form", ["loreft", "direft"])
def test_it_is_the_papers_formula(any_folder, form):
    model = load_model(str(any_folder))
    attach_small(model, "loreft", form=form, last=LAST)
    randomise(model)
    for mask, prompts in ((LEFT, [3, 4]), (LEFT, [5, 7]), (LEFT.flip(1), [1, 5])):
        expected = by_formula(any_folder, model, IDS, mask, prompts)
        found = model(IDS, mask, prompts=torch.tensor(prompts))
        real = mask.bool()
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(IDS), model(IDS, prompts=torch.tensor([7, 7])))


def test_training_rows_packed_or_not_know_their_prompts(folder):
    """The prompt ends before the first token with a loss; the last block packs few tokens."""
    model = load_model(str(folder))
    attach_small(model, "loreft", last=LAST)
    randomise(model)
    rows = [Example(IDS[0].tolist(), [0.0] * 3 + [1.0] * 4), Example([5, 9, 4], [0.0, 0.0, 1.0])]
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    batch = batch_of(rows, 0, "cpu")
    logits = by_formula(folder, model, batch.ids, mask, [3, 2])
    chosen = batch.weights[:, 1:].bool()
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1][chosen], batch.ids[:, 1:][chosen], reduction="sum"
    )
    for packing in (False, True):
        batch = batch_of(rows, 0, "cpu", packing)
        assert bool(batch.labels.packing) == packing
        torch.testing.assert_close(summed_loss(model, *batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summed_loss(model, *batch[:2]), expected, rtol=1e-4, atol=1e-4)


def test_virtual_tokens_are_none_of_the_prompt(tiny):
    attach_small(tiny, "loreft")
    for name in ("prompt", "prefix"):
        attach_small(tiny, name, as_name=name)  # 4 tokens each
    places = tiny.tokens(IDS, LEFT, None, None, prompts=torch.tensor([3, 7])).in_prompts
    assert places.shape == (2, 4 + 7, 2)
    assert (places[:, :4, 0] < 0).all()
    assert places[0, 6:].tolist() == [[0, 2], [1, 1], [2, 0], [3, -1], [4, -2]]
    assert places[1, 4:].tolist() == [[n, 6 - n] for n in range(7)]
    cache = tiny.new_cache(2, 7)
    tiny(IDS[:, :4], LEFT[:, :4], cache=cache, prompts=torch.tensor([3, 7]))
    rest = tiny.tokens(IDS[:, 4:], LEFT, None, cache, prompts=torch.tensor([3, 7])).in_prompts
    assert torch.equal(rest, places[:, 8:])
    assert tiny.tokens(IDS[:, 4:], LEFT, None, cache).in_prompts is None


def greedy(folder, model, prompt: list[int], new: int) -> list[int]:
    text = list(prompt)
    for _ in range(new):
        ids = torch.tensor([text])
        logits = by_formula(folder, model, ids, torch.ones_like(ids), [len(prompt)])
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_answers_do_not_depend_on_what_is_shared(tmp_path):
    """Beginnings that are read once, slots that are used again, rows of other adapters beside."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=128)
    model = load_model(str(folder))
    attach_small(model, "loreft", last=LAST)
    randomise(model, 0.5)
    generator = torch.Generator().manual_seed(4)
    common = torch.randint(3, 61, (40,), generator=generator).tolist()
    prompts = [common, [*common, 7], [*common, 9, 8, 5], [*common, 7, 11], [*common[:39], 4]]
    expected = [greedy(folder, model, prompt, 3) for prompt in prompts]
    kept = read(model, prompts, [], [None] * len(prompts)).beginning
    assert len(kept.ids) == 37  # of 39 in common; the last three of a prompt of 40 are its own
    for slots in (5, 2, 1):
        answers: list[list[int]] = [[] for _ in prompts]
        for event in Engine(model, slots, 64).run([Request(p, 3) for p in prompts]):
            answers[event.number] += event.tokens
        assert answers == expected
    engine = Engine(model, 1, 64)
    for prompt, answer in list(zip(prompts, expected, strict=True))[:3]:  # ever longer ones
        events = list(engine.run([Request(prompt, 3)]))
        assert [token for event in events for token in event.tokens] == answer
    pairs = [(prompt, answer) for prompt, answer in zip(prompts, expected, strict=True)]
    for (total, greedily), (prompt, answer) in zip(
        log_likelihoods(model, [*pairs, (common, [5, 6])])[:-1], pairs, strict=True
    ):
        ids = torch.tensor([prompt + answer])
        logits = by_formula(folder, model, ids, torch.ones_like(ids), [len(prompt)])[0]
        logs = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])
        assert greedily
        assert total == pytest.approx(float(logs.detach().sum()), abs=1e-3)
    attach(model, "lora", name="low", r=2, dropout=0.0)
    use(model, [Rows("default", "low", None)])
    mixed = model(ids.expand(3, -1), prompts=torch.tensor([len(prompt)] * 3))
    use(model, ["default"])
    alone = model(ids, prompts=torch.tensor([len(prompt)]))
    torch.testing.assert_close(mixed[:1], alone, rtol=1e-4, atol=1e-4)
