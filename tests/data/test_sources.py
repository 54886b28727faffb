"""Data by name: what each kind of name gives, which tests go with it, and where its files come
from.
"""

import json
from pathlib import Path

import pytest
from paper_folder import write_paper_folder

from data.sources import EXPERIMENTS, SOURCES, files_of, kind_of_answers, known_name, load_data
from data.split import MATH_SETS, paper_split, random_split
from eval.answers import read_answer
from model import UserError


def rows(count: int, answer=str, **more) -> list[dict]:
    return [
        {"instruction": f"question {i}", "output": f"It is {i}.", "answer": answer(i)} | more
        for i in range(count)
    ]


def write(path: Path, content: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("name", [*SOURCES, *EXPERIMENTS])
def test_names_in_any_case(name):
    assert known_name(name.upper()) == known_name(name.lower()) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [("gms8k", "did you mean 'gsm8k'"), ("math10k", "did you mean 'math_10k'"),
        ("zzz", "a data set of the hub"), ("./nowhere", "unknown data set"),
     ("nowhere.json", "nowhere.json does not exist")],
)  # fmt: skip
def test_unknown_names(name, said):
    with pytest.raises(UserError, match=said):
        load_data(name)


def test_what_sources_say_of_themselves():
    for name, source in SOURCES.items():
        assert all(test in SOURCES and not SOURCES[test].trains for test in source.tests)
        assert bool(source.tests) <= source.trains
        for file in source.files:
            assert file.url.startswith("https://")
            assert file.url.endswith(file.path) or name == "alpaca"
            assert file.sha256 == "" or len(file.sha256) == 64
    assert len({file.path for source in SOURCES.values() for file in source.files}) == sum(
        len(source.files) for source in SOURCES.values()
    )
    assert [file.path for file in files_of("math-v1")] == [
        file.path for name in MATH_SETS for file in SOURCES[name].files
    ]
    assert files_of("wordproblems") == []


# ---------------------------------------------------------------- sets of the paper, from a folder
def test_a_test_set_of_the_paper(tmp_path):
    folder = str(write_paper_folder(tmp_path))
    data = load_data("GSM8K", folder)
    assert data.name == "gsm8k"
    assert data.tests == {
        "gsm8k": data.train
    }  # its rationales can be trained on; train refuses that without --train-on-test
    assert len(data.train) == 10
    assert load_data("addsub", folder).tests["AddSub"][3]["answer"] == "3.00"


def test_the_later_form_of_a_math_set(tmp_path):
    write(tmp_path / "dataset" / "SVAMP" / "test.json", rows(3))
    assert [row["answer"] for row in load_data("SVAMP", str(tmp_path)).tests["SVAMP"]] == [
        "0",
        "1",
        "2",
    ]
    write_paper_folder(tmp_path / "both")
    write(tmp_path / "both" / "dataset" / "SVAMP" / "test.json", rows(3))
    assert (
        len(load_data("SVAMP", str(tmp_path / "both")).tests["SVAMP"]) == 10
    )  # with both there, the one with rationales
    with pytest.raises(UserError, match=r"multiarith_1\.json is missing"):
        load_data("MultiArith", str(tmp_path))


def test_a_commonsense_set_and_a_training_set(tmp_path):
    write(
        tmp_path / "dataset" / "boolq" / "test.json",
        rows(4, lambda i: ["true", "false"][i % 2], output=""),
    )
    data = load_data("BoolQ", str(tmp_path))
    assert data.train == []  # nothing to learn from
    assert len(data.tests["boolq"]) == 4
    with pytest.raises(UserError, match=r"piqa/test\.json is missing: --data-dir"):
        load_data("piqa", str(tmp_path))
    write(tmp_path / "ft-training_set" / "commonsense_15k.json", rows(5))
    data = load_data("commonsense_15k", str(tmp_path), tests=["boolq"])
    assert (len(data.train), list(data.tests)) == (5, ["boolq"])
    with pytest.raises(
        UserError, match=r"piqa/test\.json is missing"
    ):  # its own eight tests are not all there
        load_data("commonsense_15k", str(tmp_path))


def test_the_training_part_of_mawps_has_columns_of_its_own(tmp_path):
    rows_of_it = [
        {"id": 1, "original_text": "2 and 2 ?", "equation": "X=(2.0+2.0)", "ans": 4.0},
        {"id": 2, "original_text": "half of 1 ?", "equation": "x=1/2", "ans": "0.5"},
    ]
    write(tmp_path / "dataset" / "mawps" / "trainset.json", rows_of_it)
    write(tmp_path / "dataset" / "mawps" / "test.json", rows(3))
    data = load_data("mawps_train", str(tmp_path))
    assert list(data.tests) == ["mawps"]
    assert [(row["instruction"], row["output"]) for row in data.train] == [
        ("2 and 2 ?", "4.0"), ("half of 1 ?", "0.5"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["math_50k", "alpaca_cleaned"])
def test_further_training_sets_of_the_repository(name, tmp_path):
    file = {"alpaca_cleaned": "alpaca_data_cleaned"}.get(name, name)
    write(tmp_path / "ft-training_set" / f"{file}.json", rows(4))
    data = load_data(name, str(tmp_path), tests=[write(tmp_path / "t.json", rows(2))])
    assert len(data.train) == 4


def test_mathqa_is_answered_by_a_letter(tmp_path):
    text = "what is 1 + 1 ? The options: A ) 1 , B ) 2 , C ) 3 , D ) 4 , E ) 5"
    row = {"instruction": text, "input": "", "output": "", "answer": "B"}
    write(tmp_path / "dataset" / "mathqa" / "test.json", [row])
    assert load_data("MathQA", str(tmp_path)).tests["mathqa"][0]["answer"] == "B"
    assert read_answer("The answer is B ) 2.", "mathqa") == "B"


# ---------------------------------------------------------------- which tests
def test_tests_by_name_and_by_file(tmp_path):
    folder = str(write_paper_folder(tmp_path))
    write(tmp_path / "dataset" / "boolq" / "test.json", rows(4, lambda i: "true"))
    own = write(tmp_path / "mine.json", rows(3, lambda i: "ABC"[i]))
    data = load_data("math-v1", folder, tests=["GSM8K", "boolq", own])
    split = paper_split(folder)
    assert {name: len(test) for name, test in data.tests.items()} == {
        "gsm8k": 2,
        "boolq": 4,
        "mine": 3,
    }
    assert (
        data.tests["gsm8k"] == split["gsm8k"][1]
    )  # the held-out part, not the file, most of which is trained on
    assert data.train == split["union"]
    assert data.reads == {"mine": "letters:A|B|C"}
    with pytest.raises(UserError, match="unknown test set 'gsm8'; did you mean 'gsm8k'"):
        load_data("math-v1", folder, tests=["gsm8"])
    with pytest.raises(UserError, match="unknown test set 'math_10k'"):  # made to train on
        load_data("math-v1", folder, tests=["math_10k"])


def test_other_tests_take_the_place_of_your_own(tmp_path):
    folder = write_paper_folder(tmp_path)
    own = write(tmp_path / "mine.json", rows(30))
    data = load_data(own, str(folder), tests=["SVAMP"])
    assert (len(data.train), list(data.tests), data.reads) == (
        30,
        ["SVAMP"],
        {},
    )  # nothing is held out
    manners = load_data("wordproblems").tests
    name = next(iter(manners))
    assert load_data("wordproblems", tests=[name.upper()]).tests == {
        name: manners[name]
    }  # names that only this data has


# ---------------------------------------------------------------- your own data
def test_your_own_file_is_split_by_the_seed(tmp_path):
    path = write(tmp_path / "mine.json", rows(50))
    data = load_data(path, seed=1)
    assert (
        len(data.train),
        {name: len(test) for name, test in data.tests.items()},
        data.reads,
    ) == (45, {"mine": 5}, {"mine": "number"})
    assert load_data(path, seed=1) == data
    assert load_data(path, seed=2).tests != data.tests
    assert len(load_data(path, test_share=0.5).train) == 25
    assert load_data(path, test_share=0.0).tests == {}
    one_blank = load_data(
        write(tmp_path / "texts.json", rows(50, answer=lambda i: str(i) if i else ""))
    )
    assert len(one_blank.tests["texts"]) == 5  # one blank answer does not stop the measuring
    assert sum(not row["answer"] for row in one_blank.train) == 1


@pytest.mark.parametrize("seed", range(5))
def test_equal_instructions_stay_on_one_side(seed):
    many = [row for row in rows(20, input=" ") for _ in range(4)]
    train, test = random_split(many, 0.3, seed)
    assert len(train) + len(test) == 80
    assert len(test) == 24
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in test}


def test_columns_of_your_file(tmp_path):
    path = write(tmp_path / "mine.json", [{"q": f"a{i}", "r": "b", "answer": i} for i in range(10)])
    assert load_data(path, columns={"instruction": "q", "output": "r"}).train[0]["output"] == "b"
    with pytest.raises(UserError, match="--columns instruction=COLUMN"):
        load_data(path)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["1", " 2.5", "-3", "1,000"], "number"), (["A", "E ", "C"], "letter"),
        (["A", "F"], "letters:A|B|C|D|E|F"), (["yes", "No", "yes"], "labels:no|yes"),
        (["true", "1"], "labels:1|true"), ([f"w{i}" for i in range(21)], "text"),
        (["two words", "a"], "text"), (["nan", "1"], "labels:1|nan"),
    ],
)  # fmt: skip
def test_how_answers_are_read(answers, kind):
    assert kind_of_answers(answers) == kind


def test_the_fingerprint_is_of_the_training_rows(tmp_path):
    one, other = (
        load_data(write(tmp_path / f"{name}.json", rows(9)), test_share=0.0) for name in "ab"
    )
    assert one.fingerprint == other.fingerprint
    assert (
        one.fingerprint
        != load_data(write(tmp_path / "c.json", rows(8)), test_share=0.0).fingerprint
    )
