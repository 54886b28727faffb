"""Texts from strings, together, alone and streamed."""

import pytest
import torch

from adapters import attach, use
from data import stops
from data.batches import encode_prompt
from data.prompts import template
from eval.generate import Sampling, generate, generate_text
from model import UserError, load_model, load_tokenizer

# ---------------------------------------------------------------- texts
TEXTS = [
    "Tom has 3 pens.",
    "Emma baked 12 pies and ate 4. Each box holds 2. How many boxes are there?",
    "Amy",
]


@pytest.fixture(scope="module")
def pocket():
    model, tokenizer = (
        load_model("pocket-llama", dtype=torch.float32),
        load_tokenizer("pocket-llama"),
    )
    torch.manual_seed(0)
    attach(model, "parallel", size=4, init="bert")
    return model, tokenizer


def text_alone(model, tokenizer, text: str, form: str | None, **decoding) -> str:
    """What the tokens of one text continue to, without generate_text."""
    ids = tokenizer.encode(text)
    if form:
        _, ids = encode_prompt(tokenizer, {"instruction": text}, template(form, tokenizer))
    (new,) = generate(
        model,
        torch.tensor([ids]),
        stop_ids=stops.stop_ids(tokenizer),
        vocab_size=tokenizer.size,
        **decoding,
    )
    return tokenizer.decode(new, after=ids)


@pytest.mark.parametrize("form", [None, "alpaca"])
@pytest.mark.parametrize("kind", ["greedy", "beams", "sampled"])
def test_texts_together_are_what_each_is_alone(pocket, form, kind):
    decoding = {"max_new_tokens": 12, "beams": 3 if kind == "beams" else 1}
    seeds = [[7], [8], [9]]
    sampled = {"sampling": Sampling(1.5, 20)} if kind == "sampled" else {}
    alone = [
        text_alone(*pocket, text, form, **decoding, **sampled, **({"seeds": s} if sampled else {}))
        for text, s in zip(TEXTS, seeds, strict=True)
    ]
    if sampled:
        sampled["seeds"] = [7, 8, 9]
    assert generate_text(*pocket, TEXTS, template=form, **decoding, **sampled) == alone
    assert len(set(alone)) == 3


def test_streamed_pieces_are_the_text_of_their_row(pocket):
    pieces: dict[int, list[str]] = {}
    texts = generate_text(
        *pocket,
        TEXTS,
        template="alpaca",
        max_new_tokens=16,
        stream=lambda row, piece: pieces.setdefault(row, []).append(piece),
    )
    assert ["".join(pieces[row]) for row in range(3)] == texts
    assert all(len(pieces[row]) > 3 for row in range(3))
    with pytest.raises(UserError, match="need beams=1"):
        generate_text(*pocket, TEXTS, beams=2, stream=print)


def test_texts_by_default_have_seeds_of_their_own(pocket):
    model, tokenizer = pocket
    options = {"max_new_tokens": 8, "sampling": Sampling(2.0)}
    texts = generate_text(model, tokenizer, ["Tom"] * 3, **options)
    assert len(set(texts)) == 3
    assert texts == generate_text(model, tokenizer, ["Tom"] * 3, seeds=[0, 1, 2], **options)


def test_the_adapter_in_use_writes_the_text(pocket):
    model, tokenizer = pocket
    adapted = generate_text(model, tokenizer, TEXTS, template="alpaca", max_new_tokens=8)
    use(model, [])
    base = generate_text(model, tokenizer, TEXTS, template="alpaca", max_new_tokens=8)
    use(model, ["default"])
    assert (
        adapted
        != base
        == generate_text(
            load_model("pocket-llama", dtype=torch.float32),
            tokenizer,
            TEXTS,
            template=template("alpaca"),
            max_new_tokens=8,
        )
    )


def test_texts_that_cannot_be_continued(pocket):
    assert generate_text(*pocket, []) == []
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        generate_text(*pocket, TEXTS, template="alpacca")


def test_one_text_instead_of_a_list_is_an_error(tiny):
    with pytest.raises(UserError, match=r"should be a list.*\['Tom has'\]"):
        generate_text(tiny, None, "Tom has")
