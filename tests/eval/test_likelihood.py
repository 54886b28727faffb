"""Log-likelihoods of continuations against transformers, and that nothing about the batch changes
them.
"""

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from families import CONFIGS, TINY
from likelihoods import PAIRS, assert_same, directly

from adapters import attach, parameters, use
from adapters.rows import Rows
from eval import compare
from eval.generate import generate
from eval.likelihood import log_likelihoods
from model import UserError, load_model


@pytest.mark.parametrize("family", TINY)
def test_likelihoods_equal_transformers(tmp_path, family):
    from reference import reference

    model, theirs = load_model(str(write_checkpoint(tmp_path, family))), reference(tmp_path)
    greedy = [
        (context, generate(model, torch.tensor([context]), max_new_tokens=4)[0])
        for context, _ in PAIRS
    ]
    pairs = (
        PAIRS + greedy + [(context, [*best[:-1], (best[-1] + 1) % 61]) for context, best in greedy]
    )
    expected = [directly(lambda ids: theirs(ids).logits, *pair) for pair in pairs]
    assert [one for _, one in expected] == [False] * 5 + [True] * 5 + [False] * 5
    for batch_size in (1, 4, 64):
        assert_same(log_likelihoods(model, pairs, batch_size=batch_size), expected)
        assert_same(log_likelihoods(model, pairs[::-1], batch_size=batch_size), expected[::-1])


@pytest.mark.parametrize("preset", ["parallel", "prefix", "prompt", "invertible"])
def test_adapters_count(any_tiny, preset):
    bare = log_likelihoods(any_tiny, PAIRS)
    torch.manual_seed(0)
    attach(any_tiny, preset, **({"size": 4} if preset == "parallel" else {}))
    for parameter in parameters(any_tiny):
        parameter.data.normal_(0, 0.3)
    found = log_likelihoods(any_tiny, PAIRS, batch_size=3)
    assert_same(found, [directly(any_tiny, *pair) for pair in PAIRS])
    assert all(abs(one[0] - other[0]) > 1e-3 for one, other in zip(found, bare, strict=True))


def test_a_row_whose_rotary_angles_depend_on_its_length(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, **CONFIGS["llama"]["rope dynamic"])))
    assert_same(
        log_likelihoods(model, PAIRS), [log_likelihoods(model, [pair])[0] for pair in PAIRS]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_made_where_they_are_needed_and_in_pieces(folder, device, monkeypatch):
    model = load_model(str(folder), device=device)
    expected = log_likelihoods(model, PAIRS)
    monkeypatch.setattr(compare, "CHUNK", 4)
    rows, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(len(hidden)) or logits(hidden))
    assert_same(log_likelihoods(model, PAIRS), expected)
    assert rows == [4, 4, 4, 3]  # 15 tokens of continuations


@pytest.mark.parametrize("changes", [{}, CONFIGS["llama"]["rope dynamic"]], ids=["", "dynamic"])
@pytest.mark.parametrize("preset", ["", "prefix", "prompt"])
@pytest.mark.parametrize("family", TINY)
def test_a_context_of_several_options_is_read_once(tmp_path, family, changes, preset, monkeypatch):
    if changes and family != "llama":
        pytest.skip("only LLaMA has such angles")
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    torch.manual_seed(0)
    if preset:
        attach(model, preset, length=4)
    long = list(range(3, 43))
    # As long as the positions are: what pads after them would read is not there.
    full = [5] * (64 - 5 - model.prompt_length - model.prefix_length)
    pairs = [(long[:n], own) for n in (40, 37) for own in ([7], [8, 9], [10, 11, 12, 13], [8, 9])]
    pairs += [(full, [6] * n) for n in (2, 5)] + [([5], [6] * 9), ([5], [6, 7])]
    expected = [directly(model, *pair) for pair in pairs]
    if changes:  # `directly` reads a token more, on which the angles depend
        expected = [log_likelihoods(model, [pair])[0] for pair in pairs]
    read, hidden = [], model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, *a, **k: read.append(ids.numel()) or hidden(ids, *a, **k)
    )
    assert_same(log_likelihoods(model, pairs, batch_size=4), expected)
    whole = sum(len(context) + len(own) - 1 for context, own in pairs)
    assert (sum(read) < 0.6 * whole) == (not changes)
    assert_same(log_likelihoods(model, pairs[::-1], batch_size=16), expected[::-1])


def test_adapters_by_row(tiny):
    attach(tiny, "lora", name="one")
    attach(tiny, "invertible", name="two")
    for parameter in parameters(tiny):
        parameter.data.normal_(0, 0.3)
    names, expected = ["one", None, "two", "one", "two"], []
    for pair, name in zip(PAIRS, names, strict=True):
        use(tiny, [name] if name else [])
        expected.append(directly(tiny, *pair))
    use(tiny, [Rows(*names)])
    assert_same(log_likelihoods(tiny, PAIRS, batch_size=3), expected)
    with pytest.raises(UserError, match="for a batch of 5 rows, this one has 2"):
        log_likelihoods(tiny, PAIRS[:2])


def test_greedy_is_among_the_tokens_there_are(tiny):
    """Rows of the head that no token names are never chosen, but do have a share of the
    probability.
    """
    best = generate(tiny, torch.tensor([[5, 6]]), max_new_tokens=1)[0][0]
    second = generate(tiny, torch.tensor([[5, 6]]), max_new_tokens=1, vocab_size=best)[0][0]
    free, named = (
        log_likelihoods(tiny, [([5, 6], [second])]),
        log_likelihoods(tiny, [([5, 6], [second])], vocab_size=best),
    )
    assert free == [(named[0][0], False)]
    assert named[0][1]


def test_what_has_no_likelihood_says_so(tiny, monkeypatch):
    assert log_likelihoods(tiny, []) == []
    with pytest.raises(UserError, match="pair 2 has an empty context"):
        log_likelihoods(tiny, [([1], [2]), ([], [3])])
    with pytest.raises(UserError, match="pair 1 has an empty continuation"):
        log_likelihoods(tiny, [([1], [])])
    with pytest.raises(UserError, match="batch_size should be 1 or more"):
        log_likelihoods(tiny, PAIRS, batch_size=0)

    def full(*_, **__):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "hidden", full)
        with pytest.raises(UserError, match="out of memory on cpu with 3 texts at once"):
            log_likelihoods(tiny, PAIRS, batch_size=3)
