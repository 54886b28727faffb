"""lm-evaluation-harness on our models: its own local tasks against figures computed directly, its
own model class against ours.
"""

import copy
import json
import os
import sys
from types import SimpleNamespace

os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch
from chains import CHATML, chain

from adapters import attach
from eval import harness_requests
from eval.generate import Sampling, generate
from eval.harness import decoding, harness_model, run_tasks
from eval.likelihood import log_likelihoods
from model import UserError, load_model, load_tokenizer
from model.registry import POCKET

pytest.importorskip("lm_eval")

TEXTS = [
    ("Tom has 3 apples and gets 4 more. How many apples has he?", " 7"),
    (
        "Tom has 3 apples and gets 4 more. How many apples has he? ",
        "7 apples",
    ),  # the space belongs to what follows
    ("Tom has 3 apples.\n\n", "Tom has 12 pears."),
    ("", "Tom has 3 apples."),
    (
        "<eos>Ann",
        " has 3 pears.",
        # not Tom's apples: HFLM takes two requests of the same ids for one, wherever their contexts
        # end
    ),
    ("one two " * 400, "three"),  # longer than the model
]
RULES = (
    "task: {}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {}}}}}\ntest_split: test\n"
)
CHOICE = RULES + (
    "output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: "
    "gold\ndoc_to_choice: choices\nmetric_list: [{{metric: acc}}]\n"
)
WRITE = (
    RULES + "output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: "
    "'{{{{a}}}}'\ntarget_delimiter: ''\n"
    "generation_kwargs: {{until: [' ', '.'], max_gen_toks: 12, do_sample: "
    "false, temperature: 0.0}}\n"
    "metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]\n"
)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket-llama", dtype=torch.float32), load_tokenizer("pocket-llama")


def requests(*arguments: tuple) -> list:
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.mark.filterwarnings("ignore:contexts longer")
def test_likelihoods_are_those_of_the_harness_own_model(pocket):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(POCKET / "llama", dtype=torch.float32)
    theirs = huggingface.HFLM(
        pretrained=reference, tokenizer=str(POCKET / "llama"), batch_size=2, device="cpu"
    )
    ours = harness_model(*pocket, batch_size=2)
    expected, found = (
        lm.loglikelihood(requests(*TEXTS), disable_tqdm=True) for lm in (theirs, ours)
    )
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4, rel=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    whole = requests(
        ("Tom has 3 apples.",), ("one two three " * 300,), ("",)
    )  # of one window, of several, of none
    expected, found = (lm.loglikelihood_rolling(whole, disable_tqdm=True) for lm in (theirs, ours))
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)
    assert found[2] == 0
    for settings in (
        {"until": ["."]},
        {"until": "has", "do_sample": False},
        {"until": [" 7", "Tom"]},
    ):
        asked = requests(*[(text, settings | {"max_gen_toks": 20}) for text, _ in TEXTS if text])
        assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


SAID = "ask red green . <other> blue <turn> say </s>"
UNTIL = [  # none; special tokens; with words; in the middle of a special token; EOS; white space
    [], ["<turn>"], ["<other>"], ["</s>"], ["<turn>", "<other>"], ["blue <turn>"], ["<other> blue"],
    ["<turn> say"], ["urn"], ["<"], ["reen"], ["green ."], ["blue"], ["."], [" "], ["\n"],
    ["nothing", "say"], ["r"], "<other>",
]  # fmt: skip
FOLDERS = {  # the turn's end is not EOS, and the files say so or do not
    "nothing said": {},
    "generation_config": {"generation": {"eos_token_id": [1, 2]}},
    "config": {"config": {"eos_token_id": [2, 1]}},
    "another EOS": {"generation": {"eos_token_id": 11}},
    "no EOS": {"config": {"eos_token_id": None}},
}


@pytest.mark.parametrize("way", FOLDERS)
def test_texts_end_where_the_harness_own_model_ends_them(tmp_path, way):
    """Special tokens in `until`, which are no part of the text, and stop ids that are not EOS."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    folder = str(chain(tmp_path, SAID, **FOLDERS[way]))
    theirs = huggingface.HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    ours = harness_model(load_model(folder), load_tokenizer(folder))
    for until in UNTIL:
        settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
        asked = [(text, settings) for text in ("ask", "green", "blue", "<turn>", "ask </s>")]
        asked = [(text, copy.deepcopy(more)) for text, more in asked]  # HFLM puts EOS into the list
        expected = theirs.generate_until(requests(*copy.deepcopy(asked)), disable_tqdm=True)
        assert ours.generate_until(requests(*asked)) == expected, until


def test_texts_end_where_a_turn_does(tmp_path):
    """A chat template's end of turn that no configuration names; HFLM goes on behind it."""
    folder = str(chain(tmp_path, SAID, chat=CHATML))
    lm = harness_model(load_model(folder), load_tokenizer(folder))
    assert lm.generate_until(requests(("ask", {"max_gen_toks": 12}))) == ["red green . blue"]
    plain = str(chain(tmp_path, SAID))
    lm = harness_model(load_model(plain), load_tokenizer(plain))
    assert lm.generate_until(requests(("ask", {"max_gen_toks": 12}))) == ["red green . blue say"]


def test_eos_that_is_spelled_ends_a_text_too(pocket, monkeypatch):
    """HFLM has EOS's text among the strings that end one."""
    model, tokenizer = pocket
    spelled = [n for part in ("7 <", "eos", "> more") for n in tokenizer.encode(part, bos=False)]
    assert tokenizer.eos_id not in spelled
    lm = harness_model(model, tokenizer)
    monkeypatch.setattr(lm, "continued", lambda asked: [spelled])
    assert lm.generate_until(requests(("Tom", {"max_gen_toks": 12}))) == ["7 "]


@pytest.mark.parametrize("end", ["=", " =", "apple", "s.", "<eos>", "Tom has", "4 = 6", "T"])
def test_ends_inside_of_tokens_and_over_several(pocket, end):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(POCKET / "llama", dtype=torch.float32)
    words = str(POCKET / "llama")
    theirs = huggingface.HFLM(pretrained=reference, tokenizer=words, batch_size=1, device="cpu")
    texts = [text for text, _ in TEXTS[:2]]
    asked = [(text, {"until": [end], "max_gen_toks": 24, "do_sample": False}) for text in texts]
    expected = theirs.generate_until(requests(*copy.deepcopy(asked)), disable_tqdm=True)
    assert harness_model(*pocket).generate_until(requests(*asked)) == expected


def test_tasks_give_what_is_computed_directly(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model, tokenizer = pocket
    sums = [(a, b) for a in (2, 3, 5, 8) for b in (1, 4, 6)]
    questions = [
        f"Tom has {a} apples. Tom gets {b} more apples. How many apples does Tom have now?"
        for a, b in sums
    ]
    options = [[str(a + b), str(a + b + 1), str(a)] for a, b in sums]
    pairs = []
    for question, choices in zip(questions, options, strict=True):
        before = tokenizer.encode(question)
        pairs += [
            (before, tokenizer.encode(f"{question} {choice}")[len(before) :]) for choice in choices
        ]
    logs = torch.tensor([one for one, _ in log_likelihoods(model, pairs)]).view(-1, 3)
    accuracy = (logs.argmax(dim=1) == 0).double().mean().item()
    written = []
    for question in questions:
        new = generate(
            model,
            torch.tensor([tokenizer.encode(question)]),
            max_new_tokens=12,
            stop_ids=[tokenizer.eos_id],
        )[0]
        written.append(tokenizer.decode(new).partition(" ")[0].partition(".")[0])
    answers = [text if number % 3 else "something else" for number, text in enumerate(written)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"q": q, "choices": o, "gold": 0, "a": a}
        for q, o, a in zip(questions, options, answers, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "choice.yaml").write_text(CHOICE.format("sums_choice", tmp_path / "rows.jsonl"))
    (tasks / "write.yaml").write_text(WRITE.format("sums_write", tmp_path / "rows.jsonl"))
    (tmp_path / "torn.jsonl").write_text('{"q": ')
    (tasks / "torn.yaml").write_text(CHOICE.format("sums_torn", tmp_path / "torn.jsonl"))
    (tasks / "gone.yaml").write_text(CHOICE.format("sums_gone", tmp_path / "gone.jsonl"))
    manager = harness_requests.harness("tasks").TaskManager(
        include_path=tasks, include_defaults=False
    )  # to index the others takes seconds
    monkeypatch.setattr(
        harness_requests.harness("tasks"), "TaskManager", lambda include_path: manager
    )
    found = run_tasks(
        model, tokenizer, ["sums_choice", "sums_write"], include_path=tasks, batch_size=5
    )["results"]
    assert 0 < accuracy < 1
    assert found["sums_choice"]["acc,none"] == pytest.approx(accuracy)
    assert found["sums_write"]["exact_match,none"] == pytest.approx(8 / 12)
    few = run_tasks(model, tokenizer, ["sums_write"], include_path=tasks, limit=2)
    assert few["results"]["sums_write"]["exact_match,none"] == 0.5
    assert few["n-samples"]["sums_write"]["effective"] == 2
    with pytest.raises(UserError, match="did you mean 'sums_choice'"):
        run_tasks(model, tokenizer, ["sums_choise"], include_path=tasks)
    for bad in ("sums_gone", "sums_torn"):
        with pytest.raises(UserError, match=f"the data of {bad} cannot be read"):
            run_tasks(model, tokenizer, [bad], include_path=tasks)
    with pytest.raises(UserError, match="no task is given"):
        run_tasks(model, tokenizer, [])
    with pytest.raises(UserError, match="limit should be 1 or more"):
        run_tasks(model, tokenizer, ["sums_write"], include_path=tasks, limit=0)
    with pytest.raises(UserError, match="is not a folder"):
        run_tasks(model, tokenizer, ["sums_choice"], include_path=tmp_path / "nowhere")


@pytest.mark.slow
def test_the_tasks_that_come_with_the_harness_are_known(pocket):
    with pytest.raises(UserError, match="did you mean 'arc_easy'"):
        run_tasks(*pocket, ["arc_eazy"])


def test_a_template_is_put_around_the_contexts(pocket):
    from data.prompts import TEMPLATES

    bare, inside = harness_model(*pocket), harness_model(*pocket, template="alpaca")
    row = {"instruction": TEXTS[0][0]}
    whole = TEMPLATES["alpaca"].prompt(row)
    ids = [
        pocket[1].encode(text) for text in (whole, whole + "7")
    ]  # as in training: the response without the space in front of it
    expected = log_likelihoods(
        pocket[0], [(ids[0], ids[1][len(ids[0]) :])], vocab_size=pocket[1].size
    )
    expected += bare.loglikelihood(requests(TEXTS[3]))
    found = inside.loglikelihood(requests(TEXTS[0], TEXTS[3]))
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4, rel=0)
    settings = {"max_gen_toks": 20}
    assert inside.generate_until(requests((row["instruction"], settings))) == bare.generate_until(
        requests((whole, settings))
    )
    with pytest.raises(UserError, match="unknown prompt template"):
        harness_model(*pocket, template="alpacca")


def test_a_text_that_brings_its_own_bos_has_no_second(pocket):
    words = SimpleNamespace(
        bos_id=5,
        eos_id=6,
        encode=lambda text, bos: [5] * bos + [5 if word == "<s>" else 7 for word in text.split()],
    )
    lm = harness_model(pocket[0], words)
    assert (
        lm.tok_encode("<s> word")
        == lm.tok_encode("word")
        == lm.tok_encode("<s> word", add_special_tokens=False)
        == [5, 7]
    )
    assert lm.tok_encode("word", add_special_tokens=False) == [7]
    assert lm.prefix_token_id == 5


def test_sampling_is_seeded_by_the_number_of_the_request(pocket):
    lm, settings = (
        harness_model(*pocket, batch_size=2),
        {"do_sample": True, "temperature": 2.0, "top_k": 40, "max_gen_toks": 8},
    )
    found = lm.generate_until(requests(*[(TEXTS[0][0], settings)] * 5))
    assert found == lm.generate_until(requests(*[(TEXTS[0][0], settings)] * 5))
    assert len(set(found)) > 1
    ids = torch.tensor([pocket[1].encode(TEXTS[0][0])])
    alone = generate(
        pocket[0],
        ids,
        max_new_tokens=8,
        stop_ids=[pocket[1].eos_id],
        sampling=Sampling(2.0, 40),
        seeds=[3],
    )
    assert found[3] == pocket[1].decode(alone[0])


def test_settings_of_a_task_are_kept_or_refused():
    assert decoding({}, 7) == ((), 7, None)
    assert decoding(
        {"until": "\n", "do_sample": False, "temperature": 1, "max_gen_toks": 3}, 7
    ) == (("\n",), 3, None)
    assert decoding({"until": ["a", ""], "temperature": 0.5, "max_new_tokens": 3}, 7) == (
        ("a",),
        3,
        Sampling(0.5),
    )
    assert decoding({"do_sample": True, "top_p": 0.9, "num_beams": 1}, 7) == (
        (),
        7,
        Sampling(top_p=0.9),
    )
    for said, settings in {
        "repetition_penalty": {"repetition_penalty": 1.2},
        "temperature should be": {"do_sample": True, "temperature": 0.0},
        "no meaning without": {"do_sample": False, "temperature": 0.7},
        "{'top_p': 0.9} have no meaning": {"top_p": 0.9},
        "num_beams = 4": {"num_beams": 4},
        "max_gen_toks": {"max_gen_toks": 0},
        "one max_gen_toks": {"max_gen_toks": 5, "max_new_tokens": 6},
    }.items():
        with pytest.raises(UserError, match=said):
            decoding(settings, 7)


def test_what_the_model_cannot_answer_says_so(pocket, monkeypatch):
    model, tokenizer = pocket
    lm = harness_model(model, tokenizer)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        lm.generate_until(
            requests(("Tom", {}))
        )  # 256 tokens unless the task says another number, all that the model has
    for name in ("batch_size", "max_new_tokens"):
        with pytest.raises(UserError, match=f"{name} should be 1 or more"):
            harness_model(model, tokenizer, **{name: 0})
    with pytest.raises(UserError, match="empty continuation"):
        lm.loglikelihood(requests(("", "")))
    with pytest.raises(UserError, match="room for 256"):
        lm.loglikelihood(requests(("Tom", " has" * 300)))
    with pytest.warns(UserWarning, match="lost their beginning"):
        lm.generate_until(requests(("Tom has " * 300, {"max_gen_toks": 2})))
    nameless = SimpleNamespace(
        bos_id=None, eos_id=None, size=tokenizer.size, encode=tokenizer.encode
    )
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        harness_model(model, nameless).loglikelihood(requests(("", "Tom")))
    attached = load_model("pocket-llama")
    attach(attached, "prefix")
    assert harness_model(attached, tokenizer).max_length == 256 - 30
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        harness_model(model, tokenizer)
