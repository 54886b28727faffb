"""Every reader takes time linear in the text."""

import time

import pytest

from eval.answers import read_answer

# ---------------------------------------------------------------- time
UNITS = [
    "^\\circ", "1^{\\circ}", "1^{th", "1 ^ { ", "1^\\text{th}", "° C", "\\times1", "\\cdot", "$B",
    "$A $",
    "_", "*", "`", "'", '"', "'a", "(", "((a", "[", "{", "\\boxed{", "\\boxed{{", "\\boxed{a{b}",
    "\\frac{1}{", "\\text{", "#", "#### ", "#### a", "#### 1", "###", "1,1,", "1,11", "1.111,",
    "1'111",
    "1_000", "111 ", "1 1/2 ", "1:1", "1^", "$1", "$", "-", "- 1", "−", "²", "½", "= ", "3 + 4 = ",
    "1 and ", "1 a b c ", "the answer is ", "answer is answer is ", "answer to ", "answer (",
    "total is 1 ",
    "if the answer would be ", "is correct ", "x is the answer ", "not ", "n't ", "Question: ",
    "Q:", "Q: 1\n",
    "\nhow many ", "what is ", "\n1 ", "<answer>", "</answer>", "<think>", "</think>", "</s>",
    "<|im_end|>",
    "twenty-one ", "one hundred and ", "a million ", "negative ", "10 to the power of ", "A) ",
    "A) B) C) ",
    "a. ", "A\n", "so A ", "option ", "A and B ", "A is wrong ", "A, B, C are wrong", "I ", "no ",
    "yes no ",
    "flu-", "flu-b", "not flu ", "e\u0301", "ा", "١", "\u00a0", "\n", ". ", "? ", "Check: ",
    "1\n2. ",
    "1,", " ", "9", "1/", "### ", "\\boxed{a", "\\frac{1", "^", "- ", '"a', "A. ", "A) B ", "one ",
    "million ", "is the answer ", "A: 5 B: 6 ", "1 000", "total is 5. ",
]  # fmt: skip
READERS = (
    "number",
    "number:comma",
    "letter",
    "letters:A|B|C|D|1|2|3",
    "labels:flu|flu-b|no|yes",
    "text",
)


def seconds(unit: str, length: int, reader: str) -> float:
    start = time.process_time()
    read_answer(f"a{unit * (length // len(unit))}a:1", reader)
    return time.process_time() - start


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_is_linear_in_the_text(reader):
    """A linear reader takes 0.01 s for 4,000 characters, and four times as long as for 1,000."""
    for unit in UNITS:
        if seconds(unit, 4_000, reader) > 0.02:  # the least of some times is the undisturbed one
            short, long = (
                min(seconds(unit, length, reader) for _ in range(3)) for length in (3_000, 12_000)
            )
            assert long < 8 * short, unit


@pytest.mark.parametrize("unit", ["_", "111 ", "#### a", "((a", "1,1,", "answer is answer is "])
def test_forty_thousand_characters_take_less_than_a_second(unit):
    for reader in READERS:
        assert any(seconds(unit, 40_000, reader) < 1 for _ in range(2)), reader
