"""The serving loop: rows join and leave, and an answer is what the model alone would give."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serve_parts import BASE, PRESETS, PROBLEM, adapters, loop_of  # noqa: F401 - a fixture

from adapters import attach, load_adapter, parameters, remove, save_adapters, use
from eval.engine import Engine
from eval.generate import generate, left_pad
from eval.sampling import Sampling
from eval.text import TextStream
from files.errors import UserError
from model import load_model, load_tokenizer
from serve.questions import Question, Refused
from serve.start import load

DRAWN = Sampling(temperature=1.5, top_k=20)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


def text_of(loop, question: Question) -> str:
    return "".join(piece.text for piece in loop.pieces(question))


def test_answers_are_those_of_generate_whatever_the_neighbours(adapters, tokenizer):
    """27 questions of 9 kinds of rows at the same time, five slots, others leave half way."""
    loop = loop_of(adapters, *PRESETS, slots=5)
    texts = [PROBLEM, "Tom has 3 pens.", "There are 18 coins in the house of Ben. "]
    wanted = []
    for name in ("", *PRESETS):
        for number, text in enumerate(texts):
            ids = loop.prompt(name, [{"role": "user", "content": text}])
            sampling = DRAWN if number == 1 else None
            wanted.append(Question(ids, 12 + number, name, sampling, seed=7))
    model, expected = load_model(BASE), []
    for name in PRESETS:
        load_adapter(model, adapters / name, name.replace("-", "_"))
    for question in wanted:
        use(model, [question.adapter.replace("-", "_")] if question.adapter else [])
        (new,) = generate(
            model, *left_pad([question.ids], 0, "cpu"), question.max_new_tokens,
            stop_ids=loop.ends(loop.shelf.base.template), vocab_size=tokenizer.size,
            sampling=question.sampling, seeds=[7] if question.sampling else None,
        )  # fmt: skip
        expected.append(tokenizer.decode(new, after=question.ids))
    assert len(set(expected)) > 20

    def ask(question: Question) -> str:
        if question is None:  # a client that goes away
            (answer,) = loop.ask((wanted[0], lambda piece: None))
            time.sleep(0.01)
            loop.cancel(answer)
            return ""
        return text_of(loop, question)

    loop.start()
    asked = [*wanted, *[None] * 9]
    random.Random(0).shuffle(asked)
    with ThreadPoolExecutor(len(asked)) as pool:
        found = dict(zip(map(id, asked), pool.map(ask, asked), strict=True))
    loop.stop(10)
    assert [found[id(question)] for question in wanted] == expected
    assert not loop.thread.is_alive()
    assert (loop.count, loop.answers) == (0, {})


def test_an_adapter_leaves_when_its_last_answer_is_over(adapters):
    loop = loop_of(adapters, "lora", "prefix", slots=2)
    ids = loop.prompt("lora", [{"role": "user", "content": PROBLEM}])
    loop.start()
    alone = {name: text_of(loop, Question(ids, 20, name)) for name in ("lora", "prefix", "")}
    assert len(set(alone.values())) == 3
    pieces = loop.pieces(Question(ids, 20, "lora"))
    found = next(pieces).text
    loop.unload("lora")
    with pytest.raises(Refused, match="no model 'lora'"):
        loop.ask((Question(ids, 20, "lora"), print))
    loop.load("lora", adapters / "prefix")  # another adapter, in another entry
    assert text_of(loop, Question(ids, 20, "lora")) == alone["prefix"]
    assert found + "".join(piece.text for piece in pieces) == alone["lora"]
    loop.unload("lora")
    loop.load("third", adapters / "ia3")
    assert len(loop.shelf.stacks) == 4  # entries are used again
    assert not loop.shelf.leaving
    with pytest.raises(UserError, match="there is an adapter 'prefix' already"):
        loop.load("prefix", adapters / "lora")
    with pytest.raises(UserError, match="nowhere"):
        loop.load("other", adapters / "nowhere")
    assert text_of(loop, Question(ids, 20, "prefix")) == alone["prefix"]
    loop.stop(10)


def test_slots_and_the_line_are_limited(adapters):
    loop = loop_of(adapters, slots=1, waiting=1)
    gate = threading.Event()
    loop.start()
    loop.call(gate.wait)  # the loop stands still
    long = Question([5, 6], 200)
    (first,) = loop.ask((long, print))
    (second,) = loop.ask((Question([5, 6], 3), lambda piece: None))
    with pytest.raises(Refused, match="2 questions are waiting"):
        loop.ask((long, print))
    loop.cancel(first)
    gate.set()
    deadline = time.monotonic() + 10
    while not second.is_over and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first.is_over
    assert (first.tokens, second.tokens) == (0, 3)
    loop.stop(10)
    with pytest.raises(Refused, match="stopping"):
        loop.ask((long, print))


def test_a_pass_that_fails_ends_the_answers_of_that_pass_alone(adapters, monkeypatch, capsys):
    loop = loop_of(adapters, "lora")
    expected = "".join(piece.text for piece in loop.start().pieces(Question([5, 6], 9, "lora")))
    step = Engine.step
    failures = iter([RuntimeError("of memory")])

    def failing(engine):
        if len(engine.waiting) + sum(map(bool, engine.owners)) == 1:
            for error in failures:
                raise error
        return step(engine)

    monkeypatch.setattr(Engine, "step", failing)
    with pytest.raises(UserError, match="RuntimeError: of memory"):
        text_of(loop, Question([5, 6], 9))
    assert "a pass failed" in capsys.readouterr().err
    assert text_of(loop, Question([5, 6], 9, "lora")) == expected
    loop.stop(10)


def test_several_adapters_of_a_folder_are_one_model(adapters, tmp_path):
    """A stack, and a fusion with its members."""
    loop = loop_of(adapters, "ia3")
    ids = loop.prompt("", [{"role": "user", "content": PROBLEM}])
    model = load_model(BASE)
    load_adapter(model, adapters / "lora", "one")
    attach(model, "parallel", name="two", size=4)
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.2)
    save_adapters(model, tmp_path / "stack")
    use(model, ["one", "two"])
    (new,) = generate(model, *left_pad([ids], 0, "cpu"), 9)
    expected = {"stack": loop.tokenizer.decode(new, after=ids)}
    remove(model, "one")
    attach(model, "parallel", name="three", size=4)
    attach(model, "fusion", name="both", of=["two", "three"])
    use(model, ["three"])
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.4)
    use(model, ["both"])
    save_adapters(model, tmp_path / "fusion")
    (new,) = generate(model, *left_pad([ids], 0, "cpu"), 9)
    expected["fusion"] = loop.tokenizer.decode(new, after=ids)
    loop.start()
    for name, text in expected.items():
        loop.load(name, tmp_path / name)
        assert text_of(loop, Question(ids, 9, name)) == text
        loop.unload(name)
    loop.stop(10)


@pytest.mark.parametrize("stops", [(), ("ies",), ("zz", "x = 1"), ("\n",)])
def test_pieces_of_text_are_the_text(tokenizer, stops):
    text = "Grüße 🙂 to Tom's pies: 3 x = 12.\nAnd so on, " + "word " * 40
    ids = tokenizer.encode(text, bos=False)
    whole = tokenizer.decode(ids, after=[5])
    stream = TextStream(tokenizer, [5], stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    ends = [whole.index(stop) for stop in stops if stop in whole]
    assert "".join(pieces) == whole[: min(ends, default=len(whole))]
    assert stream.stopped == bool(ends)
    assert "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 3


def test_rows_are_no_longer_than_the_model_reads():
    with pytest.raises(UserError, match="--max-length 5000: the model reads up to 256 tokens"):
        load(None, [], {"model": "pocket-llama"}, slots=2, length=5000, waiting=1)
