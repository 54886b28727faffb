"""Guessed tokens: they save passes, and no token of an answer changes by them."""

from dataclasses import replace

import pytest
import torch
from conftest import write_checkpoint

from adapters import attach, parameters, use
from adapters.rows import Rows
from eval import drafts
from eval.engine import Engine, Request
from eval.sampling import Sampling
from model import load_model

# Tiny models repeat themselves soon; where they do not, guesses are wrong.
PROMPTS = [[5, 6, 7, 5, 6, 8, 5, 6], [9, 10, 11, 12], [13, 14, 13, 14, 13], [20, 21], [5, 6]]


def test_what_followed_the_last_two_tokens_is_guessed():
    text = drafts.Text([1, 2, 3, 4, 1, 2])
    assert text.guess(3) == [3, 4, 1]
    text.extend([5, 1, 2])
    assert text.guess(9) == [5, 1, 2]  # what followed them last
    text.extend([6])
    assert text.guess(9) == []


def events_of(model, requests, slots=3, length=40):
    """(the events of each request, passes over live rows with how many tokens of each)."""
    passes, hidden = [], model.hidden

    def count(ids, *rest, cache, **more):
        if not cache.is_empty:
            passes.append(ids.shape[1])
        return hidden(ids, *rest, cache=cache, **more)

    model.hidden = count
    found = {}
    for event in Engine(model, slots, length, 61).run(requests):
        found.setdefault(event.number, []).append(event)
    del model.hidden
    return found, passes


def guesses_that_half_hold(answers: dict[int, list[int]]):
    """A `guess` that knows the answers and is wrong in some places, others in each row."""

    def guess(row, most):
        start, most = len(row.tokens), min(most, row.longest - len(row.tokens) - 1)
        right = answers[row.number][start : start + most]
        wrong = (row.number + start) % 4  # its first wrong token; beyond the end: none is
        return [(token + (i >= wrong)) % 61 for i, token in enumerate(right)]

    return guess


@pytest.mark.parametrize(
    ("family", "way", "preset"),
    [
        ("llama", "greedy", ""),
        ("llama", "rows", "prefix"),
        ("mistral", "drawn", "prefix"),
        ("bloom", "greedy", "prefix"),
        ("opt", "drawn", ""),
        ("gptj", "rows", ""),
    ],
)
def test_events_are_those_without_guesses(tmp_path, monkeypatch, family, way, preset):
    """Tokens, ends and probabilities, with guesses that hold and guesses that do not."""
    changes, more = {}, {}
    if family == "mistral":
        family, changes = "llama", {"model_type": "mistral", "sliding_window": 4}
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    torch.manual_seed(0)
    names = [preset or "lora", "parallel"] if way == "rows" else [preset] if preset else []
    for name in names:
        attach(model, name, name=name)
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.3)
    if way == "rows":
        use(model, [Rows(names[0], None, "parallel", None, "parallel")])
    elif way == "drawn":
        more = {"sampling": Sampling(temperature=2.0)}
    lengths = [14, 9, 20, 17, 1]
    requests = [
        Request(ids, n, logprobs=3, seed=i, entry=i, **more)
        for i, (ids, n) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    with monkeypatch.context() as without:
        without.setattr(drafts, "TOKENS", {})
        free, _ = events_of(model, requests)
        whole = {number: [t for e in events for t in e.tokens] for number, events in free.items()}
        requests[2] = replace(requests[2], stop_ids={whole[2][9]})  # within what is guessed
        requests[3] = replace(requests[3], stop=lambda tokens: len(tokens) == 11)
        plain, slow = events_of(model, requests)
    order = sorted(range(5), key=lambda i: -len(PROMPTS[i]))  # the engine's numbers
    answers = {number: whole[i] for number, i in enumerate(order)}
    monkeypatch.setattr(drafts, "guess", guesses_that_half_hold(answers))
    found, fast = events_of(model, requests)
    assert len(fast) < 0.7 * len(slow)
    assert found.keys() == plain.keys()
    for number, events in plain.items():
        others = found[number]
        assert [(e.tokens, e.ended) for e in others] == [(e.tokens, e.ended) for e in events]
        for one, other in zip(events, others, strict=True):
            for (p, top), (q, likely) in zip(one.scores, other.scores, strict=True):
                assert q == pytest.approx(p, abs=1e-4)
                assert dict(likely) == pytest.approx(dict(top), abs=1e-4)


@pytest.mark.parametrize(("new", "length", "why"), [(40, 45, "positions"), (21, 26, "length")])
def test_guesses_end_where_the_positions_or_the_slots_do(tmp_path, monkeypatch, new, length, why):
    model = load_model(str(write_checkpoint(tmp_path, "opt", max_position_embeddings=30)))
    requests = [Request([7, 8, 7, 8, 9], new), Request([7, 8], new + 3)]  # ends at the same column
    with monkeypatch.context() as without:
        without.setattr(drafts, "TOKENS", {})
        plain, slow = events_of(model, requests, slots=2, length=length)
    answers = {n: [t for e in events for t in e.tokens] for n, events in plain.items()}
    monkeypatch.setattr(drafts, "guess", guesses_that_half_hold(answers))
    found, fast = events_of(model, requests, slots=2, length=length)
    assert found == plain
    assert found[0][-1].ended == why
    assert len(fast) < len(slow)


def test_where_a_pass_over_several_tokens_would_differ_or_not_pay(tiny, monkeypatch):
    requests = [Request([7, 8] * 4, 20)]
    assert max(events_of(tiny, requests)[1]) > 1
    monkeypatch.setattr(tiny, "depends_on_length", True)
    assert max(events_of(tiny, requests)[1]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(tiny, "call", lambda block, x, step: block(x, step))  # as if compiled
    assert max(events_of(tiny, requests)[1]) == 1
    monkeypatch.undo()
    monkeypatch.setitem(drafts.TOKENS, "cpu", 9)
    many = events_of(tiny, requests * 5, slots=5)[1]
    assert max(many[:10]) == 1  # five rows and one guess for each would be ten
