"""What a text says its answer is, case by case."""

import pytest

from eval.answers import is_right, reaches, read_answer
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
    (
        "The answer is 5.\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:\nThe answer is 4.",
        5,
        4,
    ),
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
STRICT_NUMBERS = [  # what only the strict reader is asked
    ("The answer is 6 because the total is 8", 6),
    ("The answer is 6. The total is 8.", 6),
    ("The answer is 6 (total is 8).", 6),
    ("The total is 8. 8 - 2 = 6. So Tom has 6 left.", 6),
    ("The total is 20. Then 20 - 5 = 15.", 15),
    ("The result is 8. We subtract 2 to get 6.", 6),
    ("The answer is 42.### Instruction:\nThe answer is 9", 42),
    ("The answer is 42. ###  Instruction: 9", 42),
    ("The answer is 1e5.", 100000.0),
    ("The answer is 1.5e-3", 0.0015),
    ("The answer is 1.5 x 10^6", 1500000.0),
    ("The answer is 3 × 10^2.", 300),
    ("The answer is 1.5 x 10^{6}.", 1500000.0),
    ("3 × 10⁻²", 0.03),
    ("The answer is 10^3.", 1000),
    ("The answer is 2^3", 8),
    ("The area is 25 cm^2.", 25),
    ("25 cm²", 25),
    ("The answer is 1 1/2.", 1.5),
    ("2 3/4 cups", 2.75),
    ("½", 0.5),
    ("The answer is 2½ cups.", 2.5),
    (r"$\boxed{\frac{3}{4}}$", 0.75),
    (r"The answer is $\frac{1}{2}$.", 0.5),
    (r"\boxed{42} because we have 3 things", 42),
    (r"So \boxed{-\frac{3}{4}}.", -0.75),
    (r"\boxed{\$1{,}234}", 1234),
    (r"\boxed{5\text{ apples}}", 5),
    ("The answer is $42$. It took 3.", 42),
    (r"\boxed{42", 42),
    ("The answer is twenty-five.", 25),
    ("The answer is one hundred.", 100),
    ("The answer is thirty.", 30),
    ("The answer is one hundred and five.", 105),
    ("The answer is two thousand three hundred.", 2300),
    ("The answer is two and a half.", 2.5),
    ("The answer is three quarters.", 0.75),
    ("The answer is one half.", 0.5),
    ("thirty.", 30),
    ("The answer is 60 = 100 - 40.", 60),
    ("The answer is 20 = 4 x 5", 20),
    ("The answer is 49 - 34 = 15 customers.", 15),
    ("The answer is x = 5", 5),
    ("The answer is 5 million.", 5000000.0),
    ("The answer is 5k", 5000),
    ("The answer is 5 km.", 5),
    ("The answer is not 5 but 6.", 6),
    ("The answer should be 7 for 3 people.", 7),
    ("The answer is not 5. It is 6.", 6),
    ("The answer isn't 5, it is 6.", 6),
    ("The answer is not 5.", None),
    ("**42**", 42),
    ("The answer is **42**.", 42),
    ("7 is the answer. It took 3 steps.", 7),
    ("So 7 apples is the correct answer for 3", 7),
    ("What is the answer? 3 + 4 = 7", 7),
    ("The temperature is -5 degrees.", -5),
    ("49 -34 leaves", 34),
    ("5 - 3 = 2 left", 2),
    ("12/25/2023", 12),
    ("The answer is 5! = 120.", 120),
    ("1.5^x", None),
    ("10C2", 10),
    ("9^999", None),
    ("0^-1", None),
    ("1e999", None),
    ("The answer is 9 500.", 9500),
    ("-½", -0.5),
    ("The answer is -$20.", -20),
    ("The answer is $-20.", -20),
    ("The answer is 5 3/2.", 5),
    ("The answer to this problem is 5 because 3.", 5),
    ("#### Step 2: add 3\n6 + 3 = 9", 9),
    ("I have five, no wait, seven apples.", 7),
]
STRICT_LETTERS = [
    ("option C", "C"),
    ("The correct option is C.", "C"),
    ("Choose C", "C"),
    ("**C**", "C"),
    (r"\boxed{C}", "C"),
    ("C: 45", "C"),
    ("Therefore, C is the answer.", "C"),
    ("The answer is c.", "C"),
    ("the answer is 'C'", "C"),
    ("The answer is 50 km/h. So C", "C"),
    ("The answer is 5.5. So (C)", "C"),
    ("The total is 5. Option (C).", "C"),
    ("The correct choice is (C). Not (D).", "C"),
    ("The answer is not A but C", "C"),
    ("( C )", "C"),
    ("The answer is ( C ).", "C"),
    ('The answer is "C".', "C"),
    ("The answer is (c)", "C"),
    ("C", "C"),
    ("C.", "C"),
    ("(C) 45", "C"),
    ("Answer C", "C"),
    ("So, the correct option is (C) 45.", "C"),
    (r"$\boxed{\text{C}}$", "C"),
    (r"\boxed{(C)}", "C"),
    ("C is correct.", "C"),
    ("The answer is option c.", "C"),
    ("I choose option C: 45", "C"),
    ("C) 45", "C"),
    ("So it is C.", "C"),
    ("The answer is C because A is wrong.", "C"),
    ("The answer is A car.", None),
    ("The answer is A.", "A"),
    ("The answer is A", "A"),
    ("The answer is a.", "A"),
    ("The answer is a car", None),
    ("A: 5\nB: 6\nC: 7", None),
    ("The answer is A because b", "A"),
    ("The answer is A, B is wrong", "A"),
    ("The answer is 37 °C.", None),
    ("The answer is e.g. 5", None),
    ("It's A's", None),
    ("So A has 5", None),
    ("hose A and hose B", None),
    ("The answer is the choice B because of this.", "B"),
    ("Choices:\nA) 40 (B) 60 (C) 70 (D) 80 (E) 90\n\nAjay is 8.", None),
    ("The correct answer is (B).\n\nThe answer is: 11 hours", "B"),
]
STRICT_LABELS = [
    ("boolq", "True. It is not false.", "true"),
    ("boolq", "The answer is not true, it is false", "false"),
    ("piqa", "Solution 1", "solution1"),
    ("winogrande", "option 2", "option2"),
    ("labels:Yes|No", "The answer is yes.", "yes"),
    ("labels:Yes|No", "No", "no"),
    ("boolq", "TRUE", "true"),
    ("piqa", "Solution 1 is the correct answer", "solution1"),
    ("piqa", "Solution 1 is correct because solution 2 is bad", "solution1"),
    ("hellaswag", "The correct ending is ending #3.", "ending3"),
    ("labels:level-1|level-2", "level-2", "level-2"),
    ("labels:hot|not hot", "not hot", "not hot"),
    ("openbookqa", "The answer is answer 4", "answer4"),
    ("labels:true|false", "The answer is not true.", None),
    ("winogrande", "option #2", "option2"),
]
TEXTS = [  # answer of kind text, label, whether it is right
    ("The answer is The cat sat.", "The cat sat.", True),
    ("U.S.A.", "U.S.A.", True),
    ("The answer is U.S.A.", "u.s.a", True),
    ("The answer is U.S.A.", "U", False),
    ("the answer is  the\ncat. It sat. Why?", "The cat. It  sat.", True),
    ("The answer is Paris. It is big.", "Paris", True),
    ("The answer is Paris\n\nIt is big.", "Paris.", True),
    ("The answer is Paris Hilton.", "Paris", False),
    ("The answer is **Paris**", "paris", True),
    ("anything", "...", False),
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


@pytest.mark.parametrize(("text", "expected"), STRICT_NUMBERS)
def test_numbers_read_strictly(text, expected):
    assert read_answer(text, "number") == (
        None if expected is None else pytest.approx(expected, rel=1e-12)
    )


@pytest.mark.parametrize(("text", "expected"), STRICT_LETTERS)
def test_letters_read_strictly(text, expected):
    assert read_answer(text, "letter") == expected


@pytest.mark.parametrize(("kind", "text", "expected"), STRICT_LABELS)
def test_labels_read_strictly(kind, text, expected):
    assert read_answer(text, kind) == expected


@pytest.mark.parametrize(("text", "gold", "right"), TEXTS)
def test_texts(text, gold, right):
    assert is_right(read_answer(text, "text"), gold) == right


@pytest.mark.parametrize(
    ("rationale", "gold", "there"),
    [
        ("The answer is True.", "True", True),
        ("The answer is Paris.", "Paris", True),
        ("The answer is U.S.A.", "U.S.A.", True),
        ("The cat sat.", "The cat sat.", True),
        ("The answer is True.", "False", False),
        ("The answer is (C).", "C", True),
        ("It makes 7.", "7.0", True),
        ("It makes 7.", "", False),
    ],
)
def test_a_rationale_reaches_its_answer(rationale, gold, there):
    assert reaches(rationale, gold) is there


def test_verdicts():
    assert is_right(4.0005, "4")
    assert not is_right(4.01, "4")
    assert not is_right(None, "0")
    assert is_right("B", "B ")
    assert is_right(1234.0, "1,234")
    with pytest.raises(UserError, match="not a number"):
        is_right(4.0, "fore")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        read_answer("1", "gsm8")
    with pytest.raises(UserError, match="did you mean 'strict'"):
        read_answer("1", "gsm8k", "strikt")


def test_a_number_is_right_within_a_thousandth():
    for gold in ("2", "-2", "0.5"):
        for difference, right in (
            (0.0009, True),
            (0.0011, False),
            (0.009, False),
            (-0.0011, False),
        ):
            assert is_right(float(gold) + difference, gold) is right


def test_the_papers_reader_looks_for_five_answers_in_sets_of_fewer():
    """Its code has one pattern, answer1 to answer5, also for openbookqa (4), social_i_qa (3)."""
    for dataset in ("openbookqa", "OpenBookQA", "social_i_qa", "ARC-Easy"):
        assert read_answer("answer5 or answer1", dataset, "paper") == "answer5"
    for dataset in ("openbookqa", "social_i_qa"):
        assert read_answer("answer5 or answer1", dataset) == "answer1"
