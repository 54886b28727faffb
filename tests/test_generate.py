"""Decoding, greedy, by beams and sampled: what it returns, and that nothing about the batch
changes it.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from families import TINY

from adapters import attach, parameters, use
from adapters.compose import Rows
from data import stops
from data.batches import encode_prompt
from data.prompts import template
from data.wordproblems import problems
from eval.generate import Sampling, generate, generate_text, left_pad
from eval.predict import predict
from eval.sampling import draw
from eval.score import Score, scores
from model import UserError, load_model, load_tokenizer
from train.settings import Eval

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]


@pytest.mark.parametrize("device", DEVICES)
def test_each_token_is_the_most_likely_after_those_before(folder, device):
    model = load_model(str(folder), device=device)
    ids = torch.tensor([PROMPTS[1]], device=device)
    for token in generate(model, ids, max_new_tokens=9)[0]:
        assert token == model(ids)[0, -1].argmax()
        ids = torch.cat((ids, torch.tensor([[token]], device=device)), dim=1)


def test_results_do_not_depend_on_batch_padding_or_order(tiny):
    attach(tiny, "parallel", size=4, init="bert")
    stop = [
        generate(tiny, torch.tensor([row]), max_new_tokens=3)[0][2] for row in PROMPTS[:2]
    ]  # so that rows end at different times
    alone = [
        generate(tiny, *left_pad([row], 0, "cpu"), max_new_tokens=12, stop_ids=stop)[0]
        for row in PROMPTS
    ]
    assert len({len(row) for row in alone}) > 1
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        together = generate(
            tiny, *left_pad([PROMPTS[i] for i in order], 0, "cpu"), max_new_tokens=12, stop_ids=stop
        )
        assert together == [alone[i] for i in order]


def test_a_stop_token_ends_a_row_and_is_not_returned(tiny):
    free = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6)[0]
    first = free.index(free[3])
    assert (
        generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6, stop_ids=[free[3]])[0]
        == free[:first]
    )


def test_what_cannot_be_continued_says_so(tiny):
    ids = torch.tensor([[3, 4], [5, 6]])
    with pytest.raises(UserError, match="empty prompt"):
        generate(tiny, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(UserError, match="empty prompt"):
        generate(tiny, ids, torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(UserError, match="padded on the left"):
        generate(tiny, ids, torch.tensor([[1, 1], [1, 0]]))
    settings = {
        "1 or more": {"beams": 0},
        "sampling needs beams=1": {"beams": 2, "sampling": Sampling(), "seeds": [0, 1]},
        "need beams=1": {"beams": 2, "stop": bool},
        "a seed for each of the 2 rows, not none": {"sampling": Sampling()},
        "a seed for each of the 2 rows, not 1": {"sampling": Sampling(), "seeds": [0]},
        "seeds should be": {"sampling": Sampling(), "seeds": [0, -1]},
        "seeds are for sampling": {"seeds": [0, 1]},
        "temperature": {"sampling": Sampling(temperature=0), "seeds": [0, 1]},
        "top_k": {"sampling": Sampling(top_k=-1), "seeds": [0, 1]},
        "top_p": {"sampling": Sampling(top_p=1.5), "seeds": [0, 1]},
    }
    for said, wrong in settings.items():
        with pytest.raises(UserError, match=said):
            generate(tiny, ids, **wrong)


def test_accuracy_does_not_depend_on_batch_size_and_predictions_are_kept_whole():
    model, tokenizer = (
        load_model("pocket-llama", dtype=torch.float32),
        load_tokenizer("pocket-llama"),
    )
    tests = {
        name: list(itertools.islice(problems(name, "test", 0), 8)) for name in ("addsub", "aqua")
    }
    one, many = (
        predict(
            model,
            tokenizer,
            tests,
            template=template("alpaca"),
            decoding=Eval(batch_size=size, max_new_tokens=48),
        )
        for size in (3, 16)
    )
    assert one == many
    assert [(p["set"], p["index"]) for p in one] == [(name, i) for name in tests for i in range(8)]
    assert set(one[0]) == {
        "set",
        "index",
        "instruction",
        "prompt",
        "gold",
        "output",
        "answer",
        "right",
        "paper_answer",
        "paper_right",
        "cut",
    }
    assert scores(one)["addsub"].right == sum(p["right"] for p in one if p["set"] == "addsub") >= 6


def test_the_interval_is_wilsons():
    low, high = Score(81, 263).interval  # the example of Newcombe (1998), method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert Score(0, 20).interval[0] == 0
    assert Score(20, 20).interval[1] == 1


def test_rows_that_no_token_names_are_never_chosen(tiny):
    free = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6)[0]
    below = max(free)
    masked = generate(tiny, torch.tensor([PROMPTS[0]]), max_new_tokens=6, vocab_size=below)[0]
    assert max(masked) < below
    position = free.index(below)
    assert masked[:position] == free[:position]


def test_evaluation_leaves_out_rows_that_no_token_names(tmp_path):
    """A pocket model with rows added to its embedding, as GPT-J has them, that would always win."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    from model.registry import POCKET

    folder = tmp_path / "gptj"
    shutil.copytree(POCKET / "gptj", folder)
    weights, config = (
        load_file(str(folder / "model.safetensors")),
        json.loads((folder / "config.json").read_text()),
    )
    for name, value in (
        ("transformer.wte.weight", 0.0),
        ("lm_head.weight", 0.0),
        ("lm_head.bias", 1000.0),
    ):
        weights[name] = torch.cat(
            (weights[name], torch.full((7, *weights[name].shape[1:]), value, dtype=torch.float16))
        )
    save_file(weights, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": config["vocab_size"] + 7})
    )
    tests = {"addsub": list(itertools.islice(problems("addsub", "test", 0), 4))}
    found = [
        predict(
            load_model(name, dtype=torch.float32),
            load_tokenizer(name),
            tests,
            template=template("alpaca"),
            decoding=Eval(batch_size=4, max_new_tokens=40),
        )
        for name in ("pocket-gptj", str(folder))
    ]
    assert found[0] == found[1]


def by_transformers(
    reference, rows: list[list[int]], stop_ids: Sequence[int], **settings
) -> list[list[int]]:
    """The new tokens of transformers' generate on a left-padded batch, cut in front of the stop
    token.
    """
    ids, mask = left_pad(rows, 0, "cpu")
    found = reference.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
        **settings,
    )[:, ids.shape[1] :]
    return [
        list(itertools.takewhile(lambda token: token not in stop_ids, row))
        for row in found.tolist()
    ]


@pytest.mark.parametrize("family", TINY)
def test_beams_find_what_transformers_finds(tmp_path, family):
    from test_parity import reference

    write_checkpoint(
        tmp_path, family, tie_word_embeddings=False
    )  # with its head tied, a random BLOOM repeats one token
    model, theirs = load_model(str(tmp_path)), reference(tmp_path)
    free = [generate(model, torch.tensor([row]), max_new_tokens=10, beams=3)[0] for row in PROMPTS]
    lengths = set()
    for beams, stop_ids in itertools.product(
        (2, 3, 5), ([], [free[0][3]], [free[1][4], free[3][2], free[4][5]], range(45))
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


def as_transformers_model(model):
    """Our model, adapters and all, under transformers' generate; without a cache, so that
    reordering one is no part of it.
    """
    transformers = pytest.importorskip("transformers")

    class Wrapped(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig

        def __init__(self):
            super().__init__(
                transformers.PretrainedConfig(
                    vocab_size=model.config.vocab_size, num_hidden_layers=1
                )
            )
            self.place = torch.nn.Parameter(torch.zeros(1))  # where it is
            self.inner = [model]  # in a list: not to be counted, moved or initialised

        def forward(self, input_ids, attention_mask=None, **_):
            return transformers.modeling_outputs.CausalLMOutput(
                logits=self.inner[0](input_ids, attention_mask)
            )

        def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
            return {"input_ids": input_ids, "attention_mask": attention_mask}

    return Wrapped()


@pytest.mark.parametrize("preset", ["parallel", "prefix", "prompt", "unipelt"])
@pytest.mark.parametrize("family", TINY)
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


FILTERS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 0, 0.8),
    (1.3, 12, 0.6),
    (1.0, 100, 1e-9),
    (2.0, 1, 1.0),
    (1.0, 0, 0.5),
    (0.5, 3, 0.999),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_the_distribution_to_draw_from_is_that_of_transformers(temperature, top_k, top_p):
    transformers = pytest.importorskip("transformers")
    logits = 3 * torch.randn(7, 61, generator=torch.Generator().manual_seed(0))
    logits[0, :30] = logits[0, 30]  # equals
    logits[1] = torch.tensor(
        [0.0] * 4 + [float("-inf")] * 57
    )  # a share of 0.5 ends between two of them
    expected = (
        transformers.TemperatureLogitsWarper(temperature)(None, logits)
        if temperature != 1
        else logits
    )
    expected = transformers.TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = transformers.TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(Sampling(temperature, top_k, top_p).filter(logits), expected)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    kept = Sampling(top_p=0.9).filter(chances.log()[None]).repeat(4000, 1)  # without the fourth
    drawn = draw(kept, [torch.Generator().manual_seed(seed) for seed in range(4000)])
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert shares[3:].tolist() == [0, 0]
    assert (shares[:3] - chances[:3] / 0.95).abs().max() < 0.03  # four standard deviations


def test_a_sampled_row_depends_on_its_seed_and_nothing_else(any_tiny):
    how, seeds = Sampling(temperature=1.5, top_k=20, top_p=0.95), [11, 12, 13, 14, 15]
    free = [
        generate(any_tiny, torch.tensor([row]), sampling=how, seeds=[seed])[0]
        for row, seed in zip(PROMPTS, seeds, strict=True)
    ]
    stop = [free[0][2], free[1][5]]
    alone = [
        generate(any_tiny, torch.tensor([row]), stop_ids=stop, sampling=how, seeds=[seed])[0]
        for row, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert len({len(row) for row in alone}) > 1
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 29):
        rows = left_pad([PROMPTS[i] for i in order], 0, "cpu")
        assert generate(
            any_tiny, *rows, stop_ids=stop, sampling=how, seeds=[seeds[i] for i in order]
        ) == [alone[i] for i in order]
    many = generate(any_tiny, torch.tensor(PROMPTS[:1] * 6), sampling=how, seeds=[1, 2, 3, 1, 2, 3])
    assert many[:3] == many[3:]
    assert len(set(map(tuple, many))) == 3


def test_temperature_near_0_and_top_k_1_are_greedy(tiny):
    rows = left_pad(PROMPTS, 0, "cpu")
    for how in (Sampling(temperature=1e-4), Sampling(top_k=1), Sampling(top_p=1e-9)):
        assert generate(tiny, *rows, sampling=how, seeds=range(5)) == generate(tiny, *rows)


def test_a_row_ends_when_its_own_condition_is_met(tiny):
    """Each row's new tokens, the one that ended it too; the others go on as they would."""
    free = generate(tiny, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=9)
    ends = {tuple(free[0][:3]), tuple(free[2][:5]), tuple(free[4][:1])}
    asked, streamed = [], []

    def stop(new: list[int]) -> bool:
        asked.append(tuple(new))
        return tuple(new) in ends

    found = generate(
        tiny, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=9, stop=stop, stream=streamed.append
    )
    lengths = [3, 9, 5, 9, 1]
    assert found == [row[:length] for row, length in zip(free, lengths, strict=True)]
    assert sorted(asked) == sorted(
        tuple(row[:n])
        for row, length in zip(free, lengths, strict=True)
        for n in range(1, length + 1)
    )
    assert sum(map(len, streamed)) == sum(lengths)


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
