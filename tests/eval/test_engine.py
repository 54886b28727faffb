"""The engine for answers: rows take slots and leave them, and no token of a row changes by it."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import write_checkpoint
from families import CONFIGS, TINY

from adapters import attach, parameters, use
from adapters.rows import Rows
from eval import prefill
from eval.engine import Engine, Event, Request
from eval.sampling import Sampling
from model import UserError, load_model

# Two of them begin alike, longer than what is worth sharing; the lengths differ.
FRONT = list(range(20, 40))
PROMPTS = [
    [*FRONT, 5, 6, 7],
    [8, 9, 10, 11, 12, 13, 14],
    [15],
    [*FRONT, 16, 17],
    [18, 19],
    [*FRONT, 5, 6, 40, 41],
    [42, 43, 44],
]

OPTIONS = [[[7], [8, 9], [10, 11, 12, 13]], [[44, 45, 46]], [[8], [30]]]


def reference(model, request: Request, vocab_size: int = 61) -> list[int]:
    """The new tokens of one row without a cache: a whole pass for each. (Of dynamic rotary angles
    with one: keys keep the length of their time.)
    """
    ids, new = torch.tensor([request.ids]), []
    cache = model.new_cache(1, 60) if model.depends_on_length else None
    while len(new) < request.max_new_tokens:
        some = ids[:, max(0, cache.filled - model.prompt_length) :] if cache else ids
        with torch.no_grad():
            token = int(model(some, cache=cache)[0, -1, :vocab_size].argmax())
        if token in request.stop_ids:
            break
        new.append(token)
        ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
    return new


def answers(engine: Engine, requests: list[Request]) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in requests]
    ended = [0] * len(requests)
    for event in engine.run(requests):
        assert not ended[event.number]
        outputs[event.number] += event.tokens
        ended[event.number] += bool(event.ended)
    assert ended == [1] * len(requests)  # none is lost, none comes twice
    assert engine.is_idle
    return outputs


def requests_for(model, **more) -> list[Request]:
    """Of different lengths, one of which a stop token ends."""
    lengths = [9, 3, 12, 1, 7, 5, 10]
    free = reference(model, Request(PROMPTS[2], 12))
    return [
        Request(row, n, stop_ids=[free[4]], **more) for row, n in zip(PROMPTS, lengths, strict=True)
    ]


MODELS = [
    *((family, {"tie_word_embeddings": False}) for family in TINY),
    ("llama", CONFIGS["llama"]["rope dynamic"]),
    ("llama", {"model_type": "mistral", "sliding_window": 4}),
    ("llama", {"num_key_value_heads": 1}),
    ("opt", CONFIGS["opt"]["opt-350m"]),
]


PRESETS = ["prompt", "prefix", "", "some layers"]
# prompts and prefixes in every model, plain ones and prefixes in some layers in some
IN_SLOTS = [(*one, preset) for n, one in enumerate(MODELS) for preset in PRESETS[: 2 + n % 3]]


@pytest.mark.parametrize(("family", "changes", "preset"), IN_SLOTS, ids=str)
def test_no_token_depends_on_slots_order_or_neighbours(tmp_path, family, changes, preset):
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    torch.manual_seed(0)
    if preset == "some layers":
        attach(model, "prefix", length=3, layers=[1])
    elif preset:
        attach(model, preset, length=5)
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.5)
    requests = requests_for(model)
    expected = [reference(model, request) for request in requests]
    assert len(set(map(len, expected))) > 2
    orders = itertools.islice(itertools.permutations(range(7)), 0, 5040, 1301)
    for slots, order in zip((1, 2, 3, 7), orders, strict=True):
        engine = Engine(model, slots, 40)
        found = answers(engine, [requests[i] for i in order])
        assert found == [expected[i] for i in order]
        # The same slots again, with what earlier rows left in them.
        assert answers(engine, requests[::-1]) == expected[::-1]


def test_prompts_are_read_once_where_they_are_the_same(tiny, monkeypatch):
    """The 20 tokens that three prompts begin with, and whole prompts that slots still hold."""
    read, hidden = [], tiny.hidden

    def count(ids, *rest, **more):
        if more["cache"].is_empty or ids.shape[1] > 1:
            read.append(tuple(ids.shape))
        return hidden(ids, *rest, **more)

    monkeypatch.setattr(tiny, "hidden", count)
    monkeypatch.setattr(prefill, "WORTH", 30)
    # The numbers of entries are of no account: no adapter is on the row.
    requests = [Request(PROMPTS[i], 3, entry=i) for i in (0, 3, 5)]
    expected = [reference(tiny, request) for request in requests]
    engine = Engine(tiny, 3, 40)
    assert answers(engine, requests) == expected
    assert read == [(1, 20), (3, 4)]
    read.clear()
    longer = Request([*PROMPTS[0], 8, 9, 10], 3)
    assert answers(engine, [longer]) == [reference(tiny, longer)]
    assert read == [(1, 3)]


def test_a_pass_over_prompts_has_bounded_padding(tiny, monkeypatch):
    monkeypatch.setitem(prefill.TOKENS, "cpu", 30)
    sizes, hidden = [], tiny.hidden
    monkeypatch.setattr(
        tiny, "hidden", lambda ids, *a, **k: sizes.append(ids.numel()) or hidden(ids, *a, **k)
    )
    requests = [Request(row, 4) for row in PROMPTS]
    expected = [reference(tiny, request) for request in requests]
    sizes.clear()
    assert answers(Engine(tiny, 7, 40), requests) == expected
    assert max(sizes) <= 30


def test_adapters_side_by_side(any_tiny):
    torch.manual_seed(0)
    attach(any_tiny, "lora", name="one")
    attach(any_tiny, "parallel", name="two", size=4)
    for parameter in parameters(any_tiny):
        parameter.data.normal_(0, 0.3)
    names = ["one", None, "two"]
    entries, lengths = [0, 1, 2, 1, 0, 2, 0], [4, 6, 6, 8, 6, 7, 6]
    requests = [
        Request(row, n, entry=e) for row, n, e in zip(PROMPTS, lengths, entries, strict=True)
    ]
    expected = []
    for request in requests:
        use(any_tiny, [names[request.entry]] if names[request.entry] else [])
        expected.append(reference(any_tiny, request))
    rows = Rows(*names)
    use(any_tiny, [rows])
    for slots in (2, 4):
        assert answers(Engine(any_tiny, slots, 40), requests) == expected
    assert rows.seats.entries is None  # other passes have an entry for each row again
    compared = [
        replace(r, max_new_tokens=0, options=OPTIONS[i % 3]) for i, r in enumerate(requests)
    ]
    found = [event for slots in (3, 7) for event in Engine(any_tiny, slots, 40).run(compared)]
    use(any_tiny, [])
    for event in found:
        request = compared[event.number]
        use(any_tiny, [names[request.entry]] if names[request.entry] else [])
        assert_likelihoods(any_tiny, request, event)
    use(any_tiny, [rows])
    for wrong in (None, 3):
        with pytest.raises(UserError, match=f"entries 0 to 2, not {wrong}"):
            Engine(any_tiny, 2, 40).submit(Request([5], 3, entry=wrong))


def mixed(model) -> list[str | None]:
    """Adapters with virtual tokens of different numbers, in some layers too; their names."""
    attach(model, "lora", name="lora")
    attach(model, "prefix", name="prefix", length=5)
    attach(model, "prefix", name="last", length=3, layers=[1])
    attach(model, "prompt", name="prompt", length=4)
    attach(model, "parallel", name="parallel", size=4)
    attach(model, "unipelt", name="unipelt", prefix={"length": 7})
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.3)
    return [None, "lora", "prefix", "last", "prompt", "parallel", "unipelt"]


@pytest.mark.parametrize(("family", "changes"), MODELS[:6], ids=str)
def test_rows_with_other_numbers_of_virtual_tokens(tmp_path, family, changes):
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    names = mixed(model)
    requests = [Request(PROMPTS[e], 5 + e % 3, entry=e) for e in range(7)]
    requests += [Request(PROMPTS[2], 9, entry=e, beams=2) for e in (2, 3, 4)]
    expected = []
    for request in requests:
        use(model, [name for name in names[request.entry :][:1] if name])
        free = reference(model, request)
        if request.beams > 1:
            (free,) = answers(Engine(model, 2, 40), [request])
        expected.append(free)
    assert len(set(map(tuple, expected))) == len(expected)
    use(model, [Rows(*names)])
    orders = itertools.islice(itertools.permutations(range(10)), 0, 3628800, 1234567)
    for slots, order in zip((2, 4, 13), orders, strict=True):
        engine = Engine(model, slots, 40)
        assert answers(engine, [requests[i] for i in order]) == [expected[i] for i in order]
        # The same slots again, with what earlier rows left in them.
        assert answers(engine, requests[::-1]) == expected[::-1]


def test_rows_may_get_other_adapters(tiny):
    """While rows of the first are on their way; what slots hold of an entry is not taken for what
    another adapter made of the same tokens."""
    names = mixed(tiny)
    expected = {}
    for name in ("lora", "prefix", "unipelt"):
        use(tiny, [name])
        expected[name] = reference(tiny, Request(PROMPTS[0], 6))
    use(tiny, [Rows("lora", "prefix")])
    engine = Engine(tiny, 3, 40)
    first = engine.submit(Request(PROMPTS[0], 6, entry=0))
    tokens = {first: [], engine.submit(Request(PROMPTS[0], 1, entry=1)): []}
    engine.step(), engine.step()
    use(tiny, [Rows("lora", "unipelt")])
    engine.reseat([1])
    again = engine.submit(Request(PROMPTS[0], 6, entry=1))
    tokens = {first: engine.owners[0].tokens[:], again: []}
    while not engine.is_idle:
        for event in engine.step():
            tokens[event.number] += event.tokens
    assert tokens == {first: expected["lora"], again: expected["unipelt"]}
    with pytest.raises(UserError, match="there is room for 38 in all"):  # 7 virtual, not 5
        engine.submit(Request(PROMPTS[0], 30, entry=1))
    assert names[6] == "unipelt"


def test_ways_of_decoding_side_by_side(tiny):
    """Greedy rows, drawn ones and beams in one engine; each is what it is alone."""
    drawn = Sampling(temperature=2.0, top_k=30)
    ways = [{}, {"beams": 3}, {"sampling": drawn, "seed": 4}, {"beams": 2}, {"sampling": drawn}]
    requests = [
        Request(row, 8, **way) for row, way in zip(PROMPTS, itertools.cycle(ways), strict=False)
    ]
    alone = [answers(Engine(tiny, 3, 40), [request])[0] for request in requests]
    assert len(set(map(tuple, alone))) == len(alone)
    for slots in (3, 5, 11):
        assert answers(Engine(tiny, slots, 40), requests) == alone


def assert_likelihoods(model, request: Request, event: Event) -> None:
    """As one pass over the prompt and each option has them."""
    assert (event.ended, event.tokens) == ("compared", [])
    for own, (log_prob, greedy) in zip(request.options, event.likelihoods, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([request.ids + own]))[0, len(request.ids) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).sum().item()
        assert log_prob == pytest.approx(wanted, abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == own)


def test_options_are_compared_beside_rows_that_go_on(any_tiny):
    requests = []
    for i, row in enumerate(PROMPTS):
        options = [*OPTIONS[i % 3], reference(any_tiny, Request(row, 3))]
        requests += [Request(row, 6), Request(row, options=options), Request(row, 5, beams=2)]
    alone = {i: answers(Engine(any_tiny, 2, 40), [requests[i]])[0] for i in (0, 2, 9, 11)}
    for slots in (4, 9):
        engine, found = Engine(any_tiny, slots, 40), dict.fromkeys(range(len(requests)), ())
        short = Request([5], options=OPTIONS[0])
        assert_likelihoods(any_tiny, short, *engine.run([short]))
        for event in engine.run(requests):
            found[event.number] += (event,)
        for i in range(1, len(requests), 3):
            (event,) = found[i]
            assert_likelihoods(any_tiny, requests[i], event)
            assert event.likelihoods[-1][1]
        for i, tokens in alone.items():
            assert [t for event in found[i] for t in event.tokens] == tokens


def test_a_row_comes_as_it_grows_and_can_be_cancelled(tiny):
    requests = [Request(row, 6) for row in PROMPTS[:4]]
    expected = [reference(tiny, request) for request in requests]
    engine, found = Engine(tiny, 2, 40), {}
    numbers = [engine.submit(request) for request in requests]
    for step in itertools.count():
        if step == 2:
            engine.cancel(numbers[0])  # has a slot
            engine.cancel(numbers[2])  # waits
        if engine.is_idle:
            break
        for event in engine.step():
            found.setdefault(event.number, []).append(event)
    assert [event.ended for event in found[numbers[1]]] == [""] * 5 + ["length"]
    whole = {n: [t for event in events for t in event.tokens] for n, events in found.items()}
    assert whole.pop(numbers[0]) == expected[0][:2]
    assert whole == {numbers[1]: expected[1], numbers[3]: expected[3]}
    again = engine.submit(requests[0])
    assert again not in numbers
    assert engine.step()[0].tokens == expected[0][:1]


def test_a_row_ends_where_the_positions_do(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, "opt", max_position_embeddings=12)))
    engine = Engine(model, 2, 60)
    engine.submit(Request([5] * 9, 30))
    events = []
    while not engine.is_idle:
        events += engine.step()
    assert [event.ended for event in events] == ["", "", "", "positions"]


def test_what_cannot_be_answered_is_said_when_it_is_submitted(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, "opt", max_position_embeddings=12)))
    engine = Engine(model, 2, 20)
    wrong = {
        "empty prompt": Request([], 3),
        "3 beams need as many slots; there are 2": Request([5], 3, beams=3),
        "position 12 is past the model's last, 11": Request([5] * 13, 3),
        "1 or more is needed": Request([5], 0),
        "room for 20 in all": Request([5, 6], 19),
        "`stop` needs beams=1": Request([5], 3, beams=2, stop=bool),
        "sampling needs beams=1": Request([5], 3, beams=2, sampling=Sampling()),
        "3 options need as many slots; there are 2": Request([5], options=[[5]] * 3),
        "an option of 3 after a prompt of 18 tokens": Request([5] * 18, options=[[5], [6] * 3]),
        "position 12 is past": Request([5] * 11, options=[[6] * 3]),
        "options have a token each at least": Request([5], options=[[]]),
        "no max_new_tokens and no beams": Request([5], 3, options=[[5]]),
        "token id 99": Request([5], options=[[5, 99]]),
        "temperature": Request([5], 3, sampling=Sampling(temperature=-1.0)),
    }
    for said, request in wrong.items():
        with pytest.raises(UserError, match=said):
            engine.submit(request)
    fits = Request([5] * 11, options=[[6] * 2])  # the last id of an option needs no position
    assert [event.ended for event in engine.run([fits])] == ["compared"]
    assert engine.is_idle
