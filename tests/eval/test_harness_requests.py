"""Requests of lm-evaluation-harness: likelihoods and ends of texts as its own model has them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from chains import CHATML, chain
from harness_texts import (
    TEXTS,
    pocket,  # noqa: F401
    requests,
)

from eval.generate import Sampling, generate
from eval.harness import harness_model
from eval.likelihood import log_likelihoods
from model import UserError, load_model, load_tokenizer
from model.registry import POCKET

pytest.importorskip("lm_eval")


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
