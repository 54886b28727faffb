"""The project's own word problems, the paper's split, and the walls between train and test."""

import hashlib
import json
import re
from itertools import islice

import pytest
from conftest import ALL_WORD_PROBLEMS
from paper_folder import write_paper_folder
from processes import ROOT

from data import sources, wordproblems
from data.prompts import PREAMBLE, RESPONSE
from data.sources import load_data
from data.split import MATH_SETS, paper_split
from data.wordproblems import HELD_OUT, MANNERS, problems, side
from experiments.pretrain import encode_line, lines
from model import UserError, load_tokenizer
from train.settings import recipe

PAPER = ROOT.parent / "shared" / "data" / "LLM-Adapters"
SHIPPED = recipe("pocket")  # what the shipped model was made with
ALL = [*MANNERS, f"{HELD_OUT}-unseen"]


@pytest.fixture(autouse=True, scope="module")
def whole():
    """The word problems are as many here as a user gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "TRAIN_ROWS", ALL_WORD_PROBLEMS)
        yield


@pytest.fixture(scope="module")
def words(whole):
    return load_data("wordproblems")


@pytest.mark.parametrize("manner", ALL)
def test_every_step_of_a_rationale_is_right_and_leads_to_the_answer(manner):
    for row in islice(problems(manner, "train", 3), 300):
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", row["output"])
        assert steps
        for a, sign, b, result in steps:
            assert eval(f"{a} {sign} {b}") == int(result)
            assert 0 < int(result) <= wordproblems.LARGEST
        assert row["output"].endswith(f"The answer is {row['answer']}.")
        if manner == "aqua":
            assert f"( {row['answer']} ) {steps[-1][3]}" in row["instruction"]
        else:
            assert row["answer"] == steps[-1][3]
        given = re.findall(r"\d+", row["instruction"])
        assert steps[0][0] in given
        assert steps[0][2] in given


@pytest.mark.parametrize("share", [0.2, pytest.param(1, marks=pytest.mark.slow)])
def test_no_test_problem_is_in_any_training_data(words, share):
    """Neither in what adapters learn from nor in what the pocket model was made of."""
    tests = {row["instruction"] for rows in words.tests.values() for row in rows}
    assert len(tests) == sum(map(len, words.tests.values()))
    assert len(words.train) == 16_000
    for data in (words, load_data("wordproblems", seed=1)):
        assert not tests & {row["instruction"] for row in data.train}
    shown = set()
    count = SHIPPED["train"]["max_steps"] * SHIPPED["train"]["batch_size"]
    for line in islice(lines(count, SHIPPED["seed"]), round(share * count)):
        shown.add(line[0][0].removeprefix(PREAMBLE).removesuffix(RESPONSE))
    assert len(shown) > 40_000 * share
    assert not tests & shown


def test_sides_are_decided_by_the_question_alone():
    assert {side(row["instruction"]) for row in islice(problems("gsm8k", "train", 5), 200)} == {
        "train"
    }
    assert {side(row["instruction"]) for row in islice(problems("gsm8k", "test", 5), 200)} == {
        "test"
    }


def test_unseen_templates_are_never_trained_on(words):
    trained = {row["template"] for row in words.train if row["manner"] == HELD_OUT}
    unseen = [row["template"] for row in words.tests[f"{HELD_OUT}-unseen"]]
    assert len(set(unseen)) > 100
    assert not trained & set(unseen)
    openings = {template.split("?")[0].partition(".")[0] for template in trained}
    assert not openings & {
        template.split("?")[0].partition(".")[0]
        for template in unseen
        if ". " not in template.partition("{b}")[0]
    }


def test_the_pretraining_text_has_the_words_of_the_held_out_manner_but_no_problem_of_it():
    text = ["".join(part for part, _ in line) for line in lines(6000, seed=0)]
    shown = set(re.findall(r"[A-Za-z]+", " ".join(text)))
    asked = " ".join(
        row["instruction"] + row["output"] for row in islice(problems(HELD_OUT, "train", 0), 2000)
    )
    assert set(re.findall(r"[A-Za-z]+", asked)) <= shown
    pattern = re.compile(r"First, \d+ [-+] \d+ = \d+\. Then, \d+ [*/]")
    assert pattern.search(asked)
    assert not any(pattern.search(line) for line in text)


def test_the_mix_keeps_the_trained_manners(words):
    share = sum(row["manner"] == HELD_OUT for row in words.train) / len(words.train)
    assert 0.4 < share < 0.65
    assert {row["manner"] for row in words.train} == set(MANNERS)
    assert list(words.tests)[:2] == [HELD_OUT, f"{HELD_OUT}-unseen"]


def test_pretraining_weights_results_and_rationales():
    tokenizer = load_tokenizer("pocket-llama").inner.inner
    for line in islice(lines(200, seed=1), 200):
        example = encode_line(tokenizer, line)
        assert len(example.ids) == len(example.weights)
        weights = dict(line)
        assert set(weights.values()) <= {0.0, 0.1, 1.0}
        assert tokenizer.decode(example.ids, skip_special_tokens=False) == "".join(
            text for text, _ in line
        )


def test_the_same_seed_gives_the_same_problems(monkeypatch):
    generated = sources.word_problems  # conftest.py gives copies of what was generated once
    monkeypatch.setitem(sources.EXPERIMENTS, "wordproblems", generated)
    monkeypatch.setattr(sources, "TRAIN_ROWS", 1000)
    one, again, other = (load_data("wordproblems", seed=seed) for seed in (4, 4, 5))
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint
    assert one.tests == other.tests


def test_the_split_is_80_to_20_in_the_order_of_one_generator(tmp_path):
    split = paper_split(write_paper_folder(tmp_path))
    assert list(split) == [*MATH_SETS, "union"]
    for name in MATH_SETS:
        train, test = split[name]
        assert (len(train), len(test)) == (8, 2)
    assert split["AddSub"][0][0]["answer"].endswith(".00")  # the set's own label strings
    assert len(split["union"]) == 48
    digest = hashlib.md5(json.dumps(split["union"], indent=4).encode()).hexdigest()
    assert (
        digest == "fccb8e6e07c24695f777ba29c0b747aa"
    )  # as the paper's own script, with random.seed(2023), makes it of this folder
    assert paper_split(tmp_path) == split


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's data is not beside the repository")
def test_the_papers_union_byte_for_byte():
    split = paper_split(PAPER)
    assert (
        hashlib.md5(json.dumps(split["union"], indent=4).encode()).hexdigest()
        == "4a8f89d116cec1b31c1a9353bd4d1538"
    )
    assert [len(split[name][1]) for name in MATH_SETS] == [79, 120, 102, 51, 264, 200]


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(UserError, match="--data-dir FOLDER"):
        load_data("math-v1")
    with pytest.raises(UserError, match=r"addsub_1\.json is missing"):
        load_data("math-v1", str(tmp_path))
    folder = write_paper_folder(tmp_path)
    path = folder / "dataset" / MATH_SETS["SVAMP"]
    for text, said in (
        ("[{}, {}]", "not the paper's file"),
        ("{}", "not a list"),
        ("[", "cannot be read as JSON"),
        ("[1, 2]", "not a list"),
        ("[]", "not a list"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("9" * 5000, "cannot be read as JSON"),
        ('[{"question": null, "chain-of-thought": "a", "answer": 1}, {}]', "not the paper's file"),
        (
            (
                '[{"question": null, "chain-of-thought": "a", "answer": 1}, '
                '{"question": "b", "chain-of-thought": "c", "answer": 2}]'
            ),
            "item 1: the question",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said) as error:
            load_data("math-v1", str(folder))
        assert "svamp_1.json" in str(error.value)
    labels = path.parent.parent / "AddSub" / "AddSub.json"
    labels.write_text('[{"lSolutions": []}, {}]')
    with pytest.raises(UserError, match="not the paper's file"):
        load_data("math-v1", str(folder))
    with pytest.raises(UserError, match="did you mean 'math-v1'"):
        load_data("math_v1")
    with pytest.raises(UserError, match="takes no --data-dir"):
        load_data("wordproblems", str(folder))
