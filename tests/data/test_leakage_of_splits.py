"""Twins stay on one side when rows are held out."""

import json
import random

import pytest

from data.leakage import leakage
from data.sources import load_data
from data.split import random_split, same_questions


def rows(*texts: str) -> list[dict]:
    return [{"instruction": text, "input": ""} for text in texts]


def found(train: list[dict], test: list[dict], **options) -> dict[int, tuple[str, int]]:
    return leakage(train, {"set": test}, **options)["set"].found


# ---------------------------------------------------------------- chats and plain text
def chat(*turns: str, **more) -> dict:
    """A row of user and assistant turns in alternation, the last being the output."""
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": turn}
        for place, turn in enumerate(turns)
    ]
    return {"instruction": turns[-2], "output": turns[-1], "history": messages[:-2], **more}


def texts(*each: str) -> list[dict]:
    return [{"instruction": "", "input": "", "output": text} for text in each]


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
