"""What a text says its answer is, case by case."""

import pytest

from eval.answers import is_right, read_answer
from model import UserError

NUMBERS = [  # text, strict, paper
    ("The answer is 49 - 34 = 15 customers.", 15, 15),
    ("First, 6 + 14 = 20. Then, 20 / 5 = 4. The answer is 4.", 4, 4),
    ("The answer is 12. That leaves 3 for later.", 12, 3),
    ("So she has 8 apples", 8, 8),
    ("She pays $1,234.50 in all.", 1234.5, 1234.5),
    ("The answer is -$20.", -20, 20),
    ("The answer is .375.", 0.375, 375),
    ("The answer is \u22125 degrees.", -5, 5),
    ("The answer is 20%.", 20, 20),
    ("The answer is 1,000,000.", 1000000, 1000000),
    ("#### 9 500", 9500, 500),
    ("They meet after 7 hours, at 3:00 pm.", 7, 0),
    ("The area is 25 cm^2.", 25, 2),
    ("The answer is 29/3.", 29 / 3, 3),
    ("The answer is twelve.", 12, None),
    ("I do not know.", None, None),
    ("", None, None),
    ("The answer is 5.\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:\nThe answer is 4.", 5, 4),
    ("The answer is 7. Wait. The answer is 9.", 9, 9),
    ("The answer is\n\n", None, None),
    ("49 - 34 leaves 15", 15, 15),
    ("Infinity", None, None),
    ("The answer is " + "9" * 400 + "/2", None, 2),
    ("1/" + "5" * 5000, 1, None),
]

LETTERS = [
    ("The answer is (C).", "C", "C"),
    ("The answer is C.", "C", "C"),
    ("Answer: B", "B", "A"),
    ("A car needs 4 wheels, so the answer is D.", "D", "A"),
    ("Using hose A it takes 10C2 hours.", None, "A"),
    ("That is ( E ). The answer is E.", "E", "E"),
    ("B", "B", "B"),
    ("no letter here", None, None),
]

LABELS = [
    ("boolq", "the correct answer is true", "true", "true"),
    ("piqa", "It is not solution1. The correct answer is solution2", "solution2", "solution1"),
    ("ARC-Easy", "the correct answer is answer3", "answer3", "answer3"),
    ("winogrande", "nothing", None, None),
]


@pytest.mark.parametrize(("text", "strict", "paper"), NUMBERS)
def test_numbers(text, strict, paper):
    for mode, expected in (("strict", strict), ("paper", paper)):
        found = read_answer(text, "gsm8k", mode)
        assert found == (None if expected is None else pytest.approx(expected)), mode


@pytest.mark.parametrize(("text", "strict", "paper"), LETTERS)
def test_letters(text, strict, paper):
    assert read_answer(text, "AQuA") == strict
    assert read_answer(text, "AQuA", "paper") == paper


@pytest.mark.parametrize(("dataset", "text", "strict", "paper"), LABELS)
def test_labels(dataset, text, strict, paper):
    assert read_answer(text, dataset) == strict
    assert read_answer(text, dataset, mode="paper") == paper


def test_verdicts():
    assert is_right(4.0005, "4")
    assert not is_right(4.01, "4")
    assert not is_right(None, "0")
    assert is_right("B", "B ")
    assert is_right(1234.0, "1,234")
    with pytest.raises(UserError, match="not a number"):
        is_right(4.0, "four")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        read_answer("1", "gsm8")
    with pytest.raises(UserError, match="did you mean 'strict'"):
        read_answer("1", "gsm8k", "strikt")
