"""Logs of Zero-shot-CoT -> training rows. The records here are this project's own, in the form of
these logs.
"""

import json
from collections import Counter

import pytest
from processes import ROOT
from reasoning_logs import HEAD, LETTERS, NUMERALS, RULE, THINK, one, record, sample

from data.from_log import rows_from_log
from data.rows import read_table
from model import UserError

LOGS = ROOT.parent / "shared" / "data" / "zero_shot_cot_logs"


@pytest.fixture
def read(tmp_path):
    def write_and_read(text: str, **options):
        path = tmp_path / "a.log"
        path.write_bytes(text.encode())
        rows, counts = rows_from_log(path, **options)
        out = tmp_path / "rows.json"
        if rows:
            out.write_text(json.dumps(rows))
            assert read_table(out, need=("instruction", "output", "answer")) == rows
        return rows, counts

    return write_and_read


def test_a_rationale_of_several_lines(read):
    text = (
        HEAD
        + one("Two and\nthree?", "\n\nTwo and three\n\nare 2 + 3 = 5. \n", "5", "5")
        + "accuracy : 100.0\n"
    )
    rows, counts = read(text)
    assert rows == [
        {
            "instruction": "Two and\nthree?",
            "input": "",
            "output": "Two and three\n\nare 2 + 3 = 5.\nThe answer is 5.",
            "answer": "5",
        }
    ]
    assert counts == {"kept: right answer": 1}
    assert read(text.replace("\n", "\r\n")) == (rows, counts)  # as Windows writes it
    assert read("\ufeff" + text) == (rows, counts)
    assert read(one("", "So.", "5", "5"))[1] == {"left out: cut short": 1}  # no question


def test_the_last_trigger_ends_the_rationale(read):
    rationale = f"It is (B). {NUMERALS} 4.\nNo. Therefore, the answer is 5, so"
    assert read(one("a?", rationale, "5", "5"))[0][0]["output"] == f"{rationale}\nThe answer is 5."


def test_letters(read):
    rows, counts = read(
        one("Which? (A) 1 (B) 2", "Two.\nTherefore, the answer is (B).", "B", "B", LETTERS)
        + one("Which?", "One.", "A", "B", LETTERS)
    )
    assert [(row["output"], row["answer"]) for row in rows] == [
        ("Two.\nTherefore, the answer is (B).\nThe answer is B.", "B")
    ]
    assert counts == {"kept: right answer": 1, "left out: wrong answer": 1}


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("5.0", "5", True),
        ("1,234", "1234", True),
        ("0.3333", "0.333333", True),
        ("5.1", "5", False),
        ("B", "B", True),
        ("B", "b", False),
        ("nan", "5", False),
    ],
)
def test_what_counts_as_right(read, predicted, gold, right):
    assert read(one("a?", "So.", predicted, gold))[1] == {
        "kept: right answer" if right else "left out: wrong answer": 1
    }


def test_wrong_answers_are_counted_and_left_out_or_kept(read):
    text = (
        one("a?", "So.", "5", "5") + one("b?", "Hence.", "6", "5") + one("c?", "Perhaps.", "", "5")
    )
    rows, counts = read(text)
    assert [row["instruction"] for row in rows] == ["a?"]
    assert counts == {
        "kept: right answer": 1,
        "left out: wrong answer": 1,
        "left out: no answer was read": 1,
    }
    rows, counts = read(text, keep_wrong=True)
    assert rows[1] == {
        "instruction": "b?",
        "input": "",
        "output": "Hence.\nThe answer is 6.",
        "answer": "5",
    }  # what it says, beside what is right
    assert len(rows) == 2  # a rationale without any answer teaches none
    assert counts == {
        "kept: right answer": 1,
        "kept: wrong answer": 1,
        "left out: no answer was read": 1,
    }


def test_several_samples_of_a_problem(read):
    answers = [
        ("By adding.", "5"),
        ("By guessing.", "6"),
        ("By counting.", "5"),
        ("By adding.", "5"),
    ]
    samples = "".join(
        sample("a?", f"{THINK}\n{how}\n{NUMERALS} {answer}.", answer, k)
        for k, (how, answer) in enumerate(answers)
    )
    rows, counts = read(record(samples, "5") + one("b?", "So.", "7", "7"))
    assert [row["output"] for row in rows] == [
        "By adding.\nThe answer is 5.",
        "By counting.\nThe answer is 5.",
        "So.\nThe answer is 7.",
    ]
    assert counts == {
        "kept: right answer": 3,
        "left out: wrong answer": 1,
        "left out: said before": 1,
    }


def test_logs_without_rationales(read):
    plain = record(sample("a?", "The answer (arabic numerals) is 5.", "5"), "5")
    rows, counts = read(plain + one("b?", " ", "5", "5"), keep_wrong=True)
    assert rows == []
    assert counts == {
        "left out: no rationale (zero-shot without a chain of thought)": 1,
        "left out: empty rationale": 1,
    }


def test_other_words_that_ask_for_a_rationale(read):
    """Kojima et al. tried several; a log's first lines name the one it used."""
    text = HEAD + one("a?", "So.", "5", "5")
    assert (
        read(text.replace(THINK, "Let's solve it, piece by piece"))[0][0]["output"]
        == "So.\nThe answer is 5."
    )
    assert read(text.replace(f'"{THINK}"', "'First,'"))[1] == {
        "left out: no rationale (zero-shot without a chain of thought)": 1
    }


def test_truncated_records(read):
    whole = one("a?", "So it goes.", "5", "5")
    for at in range(len(whole)):
        for keep_wrong in (False, True):
            if "th_sampling\n" not in whole[:at]:
                continue
            rows, counts = read(
                one("b?", "So.", "7", "7") + whole[:at] + "\n" + one("c?", "So.", "8", "8"),
                keep_wrong=keep_wrong,
            )
            mine = [row for row in rows if row["instruction"] == "a?"]
            assert [row["instruction"] for row in rows if row not in mine] == ["b?", "c?"]
            assert sum(counts.values()) == 3
            assert all(
                row["output"] == "So it goes.\nThe answer is 5." and row["answer"] == "5"
                for row in mine
            )
            assert mine == [] or "GT : 5" in whole[:at]


@pytest.mark.parametrize(
    "text", ["", "hello", f"{RULE}\n{RULE}\n", HEAD, json.dumps([{"instruction": "a"}])]
)
def test_not_a_log(read, text):
    with pytest.raises(UserError, match=r"a\.log holds no record of a zero-shot-CoT log"):
        read(text)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.log").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "a.log", tmp_path / "nowhere.log", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            rows_from_log(path)


@pytest.mark.skipif(not LOGS.is_dir(), reason="the logs are not beside the repository")
def test_published_logs():
    counts = {
        path.name.partition("_")[0]: rows_from_log(path)[1] for path in LOGS.glob("*_cot.head.log")
    }
    assert sum(counts.values(), Counter()) == {
        "kept: right answer": 75,
        "left out: wrong answer": 54,
        "left out: no answer was read": 3,
    }
    for path in LOGS.glob("*_zero_shot.head.log"):
        assert set(rows_from_log(path)[1]) == {
            "left out: no rationale (zero-shot without a chain of thought)"
        }
