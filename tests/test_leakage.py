"""What of the tests is in the training rows: twins, near twins, and what only looks alike."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from data.leakage import NEAR, Leak, leakage, seen_sets
from data.sources import load_data
from data.split import random_split, same_questions
from experiments.rows import check_leakage
from model import UserError

PAPER = Path(__file__).parent.parent.parent / "shared" / "data" / "LLM-Adapters"


def rows(*texts: str) -> list[dict]:
    return [{"instruction": text, "input": ""} for text in texts]


def found(train: list[dict], test: list[dict], **options) -> dict[int, tuple[str, int]]:
    return leakage(train, {"set": test}, **options)["set"].found


# ---------------------------------------------------------------- twins
@pytest.mark.parametrize(
    "text",
    ["Tom has 3 well-known cats.", "tom has 3 WELL known cats", " Tom,  has\n3 (well-known) cats?! ",
     "Tom has 3 well - known cats", "Tom_has 3 “well‑known” cats…"],
)  # fmt: skip
def test_a_twin_whatever_case_punctuation_and_spacing(text):
    assert found(rows("other", "Tom has 3 well-known cats."), rows(text)) == {0: ("twin", 1)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 4", "3 - 4"), ("3 \u2212 4", "3 4"), ("3*4", "3/4"), ("-3", "3"), ("x + y = 2", "x y 2"), ("3 < 4", "3 > 4"), ("35", "3.5"),
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
    """8 words have 6 three-word runs; of two texts that share the first 8 of n words each, 6 of 2 (n - 2) - 6 runs are in both."""
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
    form = "please answer the following question with true or false without any further explanation question"
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
        "total": 3, "twins": 1, "near": 1, "found": [{"test": 1, "train": 0, "kind": "twin"}, {"test": 2, "train": 1, "kind": "near"}],
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


# ---------------------------------------------------------------- rows that a split keeps together
def sides(many: list[dict], share: float = 0.2, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """The two sides of a split, of which no row may be a twin of a row of the other."""
    train, test = random_split(many, share, seed)
    assert len(train) + len(test) == len(many)
    assert found(train, test, near=False) == {}
    assert found(test, train, near=False) == {}
    return train, test


def old_split(many: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """As splits of rows that are all different have always been drawn."""
    order = list(range(len(many)))
    random.Random(f"split {seed}").shuffle(order)
    cut = round(share * len(many))
    return [many[place] for place in order[cut:]], [many[place] for place in order[:cut]]


@pytest.mark.parametrize("seed", range(4))
def test_a_split_without_twins_is_as_it_was(seed):
    plain = rows(*(f"How much is {n} and {n}?" for n in range(30)))
    signs = rows("?", "!", "?!", "...", "(", ")")
    systems = [
        {"instruction": "", "history": [{"role": "system", "content": f"s{n}"}]} for n in range(5)
    ]
    talks = [
        chat("Hello", f"Hi {n}", f"Is it {n}?", "Yes", *(["Sure?", "Yes"] * (n % 2)))
        for n in range(20)
    ]
    many = [*plain, *signs, *systems, *talks]
    assert random_split(many, 0.3, seed) == old_split(many, 0.3, seed)


@pytest.mark.parametrize("seed", range(4))
def test_twins_stay_on_one_side(seed):
    many = []
    for n in range(30):
        one = f"Does box no. {n} hold eggs, or well-known pens?"
        system = {"role": "system", "content": "Be brief."}
        many += [
            *rows(one, one.upper(), one.replace(",", " -")),
            {"instruction": one, "history": [system]},
            {"instruction": "Does box no.", "input": one.partition("no. ")[2]},
        ]
    random.Random(seed).shuffle(many)
    assert len(sides(many, 0.2, seed)[1]) == 30


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_one_conversation_saved_at_several_turns_stays_on_one_side(seed, first):
    turns = [
        [text for turn in range(4) for text in (f"Talk {n}, turn {turn}?", f"Reply {turn}")]
        for n in range(25)
    ]
    many = [chat(*talk[: 2 * length]) for talk in turns for length in range(first, 5)]
    train, test = sides(many, 0.2, seed)
    assert len(test) == len(many) // 5
    assert not {row["history"][0]["content"] for row in train if row["history"]} & {
        row["history"][0]["content"] for row in test if row["history"]
    }


def test_a_question_and_the_chat_that_answers_it_stay_on_one_side():
    many = [
        row
        for n in range(20)
        for row in (
            *rows(f"What is {n} times {n}?"),
            chat("Hello", "Hi", f"what is {n} times {n}", "x", "Thanks", "Bye"),
        )
    ]
    for seed in range(3):
        assert len(sides(many, 0.1, seed)[1]) == 4
    assert same_questions(many[:4]) == [0, 0, 2, 2]


def test_what_most_rows_ask_is_not_held_out():
    many = [*rows(*["Go on."] * 80), *rows(*(f"Is {n} odd?" for n in range(20)))]
    for seed in range(6):
        assert len(sides(many, 0.1, seed)[1]) == 10


def test_rows_without_an_answer_do_not_bring_held_out_questions_back(tmp_path):
    labelled = [
        {"instruction": f"Is {n} odd?", "output": "x", "answer": "yn"[n % 2]} for n in range(40)
    ]
    blank = [{"instruction": f"is {n} ODD", "output": "maybe"} for n in range(25)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*labelled, *blank])))
    data = load_data(str(tmp_path / "mine.jsonl"), test_share=0.25)
    assert len(data.tests["mine"]) == 10
    assert found(data.train, data.tests["mine"], near=False) == {}
    lost = 65 - 10 - len(data.train)
    assert lost == sum(int(row["instruction"].split()[1]) < 25 for row in data.tests["mine"]) > 0
    assert f"{lost} of these ask what a held-out row asks and are left out" in data.notes
    alone = load_data(str(tmp_path / "mine.jsonl"), test_share=0.0)
    assert (len(alone.train), alone.notes) == (65, [])
