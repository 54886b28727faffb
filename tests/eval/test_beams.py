"""Beams: those of transformers, and of their own row alone."""

import itertools

import pytest
import torch
from conftest import write_checkpoint
from families import TINY
from reference import as_transformers_model, by_transformers

from adapters import attach, parameters, use
from adapters.rows import Rows
from eval.generate import generate, left_pad
from model import UserError, load_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]


@pytest.mark.parametrize("family", TINY)
def test_beams_find_what_transformers_finds(tmp_path, family):
    from reference import reference

    write_checkpoint(
        tmp_path, family, tie_word_embeddings=False
    )  # with its head tied, a random BLOOM repeats one token
    model, theirs = load_model(str(tmp_path)), reference(tmp_path)
    free = [generate(model, torch.tensor([row]), max_new_tokens=10, beams=3)[0] for row in PROMPTS]
    lengths = set()
    for beams, stop_ids in itertools.product(
        (2, 5), ([], [free[0][3]], [free[1][4], free[3][2], free[4][5]], range(45))
    ):
        found = generate(
            model, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=10, beams=beams, stop_ids=stop_ids
        )
        assert found == by_transformers(
            theirs, PROMPTS, stop_ids, num_beams=beams, max_new_tokens=10
        )
        lengths.update(map(len, found))
    assert len(lengths) > 3  # stop tokens were met, early and late
    assert generate(
        model, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=10, vocab_size=40, beams=3
    ) == by_transformers(
        theirs, PROMPTS, [], num_beams=3, max_new_tokens=10, suppress_tokens=list(range(40, 61))
    )


@pytest.mark.parametrize(
    ("family", "preset"),
    [*itertools.product(TINY, ["prompt", "unipelt"]), ("llama", "parallel"), ("opt", "prefix")],
)
def test_beams_with_adapters_on(tmp_path, family, preset):
    model = load_model(str(write_checkpoint(tmp_path, family)))
    torch.manual_seed(0)
    attach(model, preset, **({"size": 4} if preset == "parallel" else {}))
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.3)
    wrapped = as_transformers_model(model)
    free = generate(model, torch.tensor([PROMPTS[0]]), max_new_tokens=8, beams=3)[0]
    for stop_ids in ([], [free[2]]):
        found = generate(
            model, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=8, beams=3, stop_ids=stop_ids
        )
        assert found == by_transformers(
            wrapped, PROMPTS, stop_ids, num_beams=3, max_new_tokens=8, use_cache=False
        )


def test_a_beam_goes_on_however_many_stop_tokens_are_likelier(tiny, monkeypatch):
    """Behind 5 the stop tokens 10, 11, 12 and a dead end, 20, come before 30; but what follows 30
    is certain.
    """
    table = torch.full((61, 61), -50.0)  # logits of the next token by the last one
    table[5, [10, 20, 11, 12, 30]] = torch.tensor([0.4, 0.2, 0.15, 0.14, 0.11]).log()
    table[20] = 0.0
    table[range(30, 60), range(31, 61)] = 50.0
    monkeypatch.setattr(tiny, "forward", lambda ids, *_, **__: table[ids])
    monkeypatch.setattr(tiny, "logits", lambda hidden: hidden)
    found = generate(tiny, torch.tensor([[5]]), max_new_tokens=8, beams=2, stop_ids=[10, 11, 12])
    assert (
        found
        == [list(range(30, 38))]
        == by_transformers(
            as_transformers_model(tiny),
            [[5]],
            [10, 11, 12],
            num_beams=2,
            max_new_tokens=8,
            use_cache=False,
        )
    )


def test_beams_of_a_row_depend_on_nothing_but_the_row(any_tiny):
    free = [
        generate(any_tiny, torch.tensor([row]), max_new_tokens=9, beams=4)[0] for row in PROMPTS
    ]
    stop = [free[0][2], free[1][4]]
    alone = [
        generate(any_tiny, torch.tensor([row]), max_new_tokens=9, beams=4, stop_ids=stop)[0]
        for row in PROMPTS
    ]
    assert alone != free
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 29):
        together = generate(
            any_tiny,
            *left_pad([PROMPTS[i] for i in order], 0, "cpu"),
            max_new_tokens=9,
            beams=4,
            stop_ids=stop,
        )
        assert together == [alone[i] for i in order]


def test_beams_with_adapters_by_row(tiny):
    for name in ("one", "other"):
        attach(tiny, "lora", name=name)
    for parameter in parameters(tiny):
        parameter.data.normal_(0, 0.3)
    names = ["one", None, "other", "one", None]
    alone = []
    for name, row in zip(names, PROMPTS, strict=True):
        use(tiny, [name] if name else [])
        alone += generate(tiny, torch.tensor([row]), beams=2)
    use(tiny, [Rows(*names)])
    assert generate(tiny, *left_pad(PROMPTS, 0, "cpu"), beams=2) == alone
    with pytest.raises(UserError, match="for a batch of 5 rows, this one has 1"):
        generate(tiny, torch.tensor(PROMPTS[:1]))
