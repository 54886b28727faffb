"""What of the tests is in the training rows: twins, near twins, and what only looks alike."""

import json
import random
from collections import Counter

import pytest
from processes import ROOT

from data.leakage import NEAR, Leak, leakage, questions, seen_sets
from data.sources import load_data
from experiments.rows import check_leakage
from model import UserError

PAPER = ROOT.parent / "shared" / "data" / "LLM-Adapters"


def rows(*texts: str) -> list[dict]:
    return [{"instruction": text, "input": ""} for text in texts]


def found(train: list[dict], test: list[dict], **options) -> dict[int, tuple[str, int]]:
    return leakage(train, {"set": test}, **options)["set"].found


# ---------------------------------------------------------------- twins
@pytest.mark.parametrize(
    "text",
    ["Tom has 3 well-known cats.", "tom has 3 WELL known cats",
        " Tom,  has\n3 (well-known) cats?! ",
     "Tom has 3 well - known cats", "Tom_has 3 “well‑known” cats…"],
)  # fmt: skip
def test_a_twin_whatever_case_punctuation_and_spacing(text):
    assert found(rows("other", "Tom has 3 well-known cats."), rows(text)) == {0: ("twin", 1)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 4", "3 - 4"), ("3 \u2212 4", "3 4"), ("3*4", "3/4"), ("-3", "3"),
        ("x + y = 2", "x y 2"), ("3 < 4", "3 > 4"), ("35", "3.5"),
     ("caf\u00e9", "cafe")],
)  # fmt: skip
def test_what_is_no_twin(one, other):
    assert found(rows(f"Is it {one}?"), rows(f"Is it {other}?"), near=False) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 - 4", "3\u22124"),
        ("COVID-19", "covid 19"),
        ("yes/no", "Yes, no"),
        ("**3** cats", "3 cats"),
    ],
)
def test_signs_that_are_punctuation(one, other):
    assert found(rows(f"Is it {one}?"), rows(f"Is it {other}?"), near=False) == {0: ("twin", 0)}


def test_the_input_counts():
    train = [
        {"instruction": "Answer.", "input": "How many?"},
        {"instruction": "Answer.", "input": None},
    ]
    assert found(train, [{"instruction": "Answer. How", "input": "many?"}]) == {0: ("twin", 0)}
    assert found(train, [{"instruction": "Answer.", "input": "How much?"}]) == {}
    assert found(train, [{"instruction": "Answer."}]) == {0: ("twin", 1)}


def test_the_first_of_several_twins_is_named():
    assert found(rows("x", "a b", "A B"), rows("a, b")) == {0: ("twin", 1)}


# ---------------------------------------------------------------- near twins
def numbered(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def test_the_threshold_of_near_twins():
    """8 words have 6 three-word runs; of two texts that share the first 8 of n words each, 6 of 2
    (n - 2) - 6 runs are in both.
    """
    same = numbered(0, 8)
    for more, alike in ((2, 6 / 10), (3, 6 / 12)):
        train, test = (
            rows("other", f"{same} {numbered(100, more)}"),
            rows(f"{same} {numbered(200, more)}"),
        )
        assert found(train, test) == ({0: ("near", 1)} if alike >= NEAR else {})
        assert found(train, test, near=False) == {}
    assert NEAR == 6 / 10


def test_the_most_alike_row_is_named():
    text = numbered(0, 20)
    assert found(rows(f"{text} a b c d", f"{text} a", f"{text} a b"), rows(text)) == {
        0: ("near", 1)
    }


def test_what_many_problems_have_in_common_makes_no_near_twin():
    form = (
        "please answer the following question with true or false without any "
        "further explanation question"
    )
    test = rows(*(f"{form} is {name} right" for name in map(str, range(40))))
    assert found(rows(f"{form} is 99 right"), test) == {}
    assert found(rows(f"{form} is 99 right"), test[:1]) == {
        0: ("near", 0)
    }  # alone it is no common form
    unlike = "does the quick brown fox jump over one lazy dog"
    assert found(rows(f"{form} {unlike} now"), [*test, *rows(f"{form} {unlike} today")]) == {
        40: ("near", 0)
    }  # what is left decides


def test_near_twins_are_those_of_every_pair_compared():
    """Against the definition written out, on random texts of few words, so that many are alike."""
    rng = random.Random(0)
    found_any = 0
    for _ in range(30):
        base = [[rng.choice("abcdef") for _ in range(rng.randint(1, 14))] for _ in range(6)]

        def text() -> str:
            words = list(rng.choice(base))  # noqa: B023
            words[rng.randrange(len(words))] = rng.choice("abcdefg")
            return " ".join(words)

        train, test = [text() for _ in range(15)], [text() for _ in range(40)]

        def grams(one: str) -> set[tuple[str, ...]]:
            words = one.split()
            return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}

        expected = {
            number: ("twin", train.index(one)) for number, one in enumerate(test) if one in train
        }
        left = [number for number in range(len(test)) if number not in expected]
        often = Counter(gram for number in left for gram in grams(test[number]))
        common = {gram for gram, count in often.items() if count > 10}
        for number in left:
            mine = grams(test[number]) - common
            alike = [
                len(mine & (grams(one) - common)) / len(mine | (grams(one) - common) or {0})
                for one in train
            ]
            if max(alike) >= NEAR:
                expected[number] = ("near", alike.index(max(alike)))
        assert found(rows(*train), rows(*test)) == expected
        found_any += sum(kind == "near" for kind, _ in expected.values())
    assert found_any > 50


# ---------------------------------------------------------------- what is said of it
def test_counts_and_clean_problems_of_several_sets():
    same = numbered(0, 30)
    leaks = leakage(
        rows("a b c", same),
        {"one": rows("x y z", "A b c", f"{same} more"), "two": rows("q"), "none": []},
    )
    assert leaks["one"].table() == {
        "total": 3, "twins": 1, "near": 1, "found": [{"test": 1, "train": 0, "kind": "twin"},
            {"test": 2, "train": 1, "kind": "near"}],
    }  # fmt: skip
    assert set(leaks["one"].found) == {1, 2}  # problem 0 is clean
    assert leaks["two"].found == {}
    assert leaks["none"].table() == {"total": 0, "twins": 0, "near": 0, "found": []}


def test_a_set_more_than_half_of_which_is_there_is_training_data():
    def leak(twins: int, near: int) -> Leak:
        return Leak(10, {i: ("twin" if i < twins else "near", 0) for i in range(twins + near)})

    assert seen_sets(
        {"most": leak(6, 0), "half": leak(5, 0), "alike": leak(0, 10), "none": Leak(0, {})}
    ) == ["most"]


def test_no_training_rows():
    assert found([], rows("a")) == {}


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's data is not beside the repository")
def test_the_papers_split():
    data = load_data("math-v1", str(PAPER))
    leaks = leakage(data.train, data.tests)
    assert {name: leak.count("twin") for name, leak in leaks.items()} == {
        "AddSub": 14,
        "MultiArith": 11,
        "SingleEq": 19,
        "AQuA": 0,
        "gsm8k": 0,
        "SVAMP": 0,
    }
    assert leaks["gsm8k"].found == leaks["AQuA"].found == {}
    assert not seen_sets(leaks)
    for leak in leaks.values():
        assert len(leak.found) == leak.count("twin") + leak.count("near")
        assert all(0 <= number < leak.total for number in leak.found)


# ---------------------------------------------------------------- chats and plain text
def chat(*turns: str, **more) -> dict:
    """A row of user and assistant turns in alternation, the last being the output."""
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": turn}
        for place, turn in enumerate(turns)
    ]
    return {"instruction": turns[-2], "output": turns[-1], "history": messages[:-2], **more}


@pytest.mark.parametrize(
    "question", ["How tall is it?", "And how wide?", "which TOWER", "and its age"]
)
def test_every_turn_of_a_chat_to_train_on_counts(question):
    turns = ["Which tower?", "Pisa.", "How tall is it?", "57 m.", "And how wide?", "15 m."]
    train = [*rows("other"), chat(*turns), chat("Hi", "Hello", "And its age?", "650", "Bye", "Bye")]
    place = 1 + (question == "and its age")
    assert found(train, rows(question), near=False) == {0: ("twin", place)}
    assert found(train, rows("Pisa."), near=False) == {}  # an answer is no question


def test_a_turn_of_a_chat_counts_with_what_precedes_it():
    train = [chat("Which tower?", "Pisa.", "How tall is it?", "57 m.", "And how wide?", "15 m.")]
    asked = chat("Which tower?", "Pisa!", "how tall is it", "")
    assert found(
        train, [asked, chat("Which tower?", "Paris.", "How tall is it?", "")], near=False
    ) == {0: ("twin", 0)}


def test_a_chat_of_many_turns_is_compared_in_linear_time():
    history = [{"role": "user", "content": f"turn {n}"} for n in range(400)]
    texts = questions({"instruction": "x", "history": history})
    assert {"turn 0 turn 1 turn 2", *(f"turn {n}" for n in range(400))} <= set(texts)
    length = sum(1 + len(message["content"]) for message in history)
    assert length < sum(map(len, texts)) < 23 * length
    assert len(questions({"instruction": "x", "history": history[:40]})) == 81  # all of them


def test_a_near_twin_of_one_turn():
    same = numbered(0, 20)
    train = [chat(numbered(100, 40), "yes", f"{same} a", "no", numbered(200, 40), "no")]
    assert found(train, rows(same)) == {0: ("near", 0)}


def test_system_messages_and_earlier_turns_of_a_test_row_stay_as_they_are():
    system = {"role": "system", "content": "Speak French."}
    assert found([chat("a", "b", "c d e", "f")], [chat("x", "y", "c d e", "f")], near=False) == {}
    assert found([{"instruction": "Who?", "history": [system]}], rows("who"), near=False) == {
        0: ("twin", 0)
    }


def test_signs_alone_are_no_twins_of_other_signs():
    assert found(rows("???", "..."), rows("!!!", "..."), near=False) == {1: ("twin", 1)}
    assert found([{"instruction": "", "output": "a"}], rows("")) == {}


def texts(*each: str) -> list[dict]:
    return [{"instruction": "", "input": "", "output": text} for text in each]


def test_problems_are_searched_in_plain_text():
    train = texts(
        "Chapter one.", "Q: How many legs do 3 cats have?\nA: 12. Q: 3 - 4 = ? A: -1", "x"
    )
    asked = rows(
        "how many LEGS do 3 cats have",
        "many legs do 4 cats have",
        "3 + 4 =",
        "3 - 4 = ?",
        "Q: how",
        "cats have 12 Q 3 - 4 = A",
        "",
    )
    assert found(train, asked, is_text=True) == {0: ("twin", 1), 3: ("twin", 1)}


def test_a_text_that_holds_a_test_set_is_refused(tmp_path):
    (tmp_path / "book.txt").write_text(
        "A book.\n\n" + "\n".join(f"Q: Is {n} odd or even? A: odd" for n in range(9))
    )
    (tmp_path / "odd.json").write_text(
        json.dumps([{"instruction": f"Is {n} odd or even?", "answer": "odd"} for n in range(12)])
    )
    data = load_data(str(tmp_path / "book.txt"), tests=[str(tmp_path / "odd.json")])
    with pytest.raises(UserError, match=r"hold the test set odd \(9 of 12 problems\)"):
        check_leakage(data, data.tests, allowed=False)
