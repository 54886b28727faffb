"""Answers of any text are read without an error."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.answers import is_right, reaches, read_answer

KINDS = (
    "number", "number:comma", "letter", "letters:a|b|c|1|2", "labels:true|false",
    "labels:option1|option2",
    "text",
)  # fmt: skip
PIECES = [
    "the answer is ",
    "total is ",
    "not ",
    "####",
    "###",
    " Instruction",
    "\\boxed{",
    "\\frac{",
    "{",
    "}",
    "^",
    "e5",
    "10",
    "0",
    "/",
    ".",
    ",",
    " ",
    "\n",
    "-",
    "½",
    "⁹",
    "٣",
    "A",
    "(C)",
    "c",
    "option ",
    "is correct",
    "twenty",
    "-one",
    " hundred",
    " and ",
    " million",
    "k",
    "=",
    "$",
    "**",
    "'",
    "n't ",
    "true",
    "option 2",
    "x 10^",
    "²",
]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
@example("0^:0")
def test_any_text_is_read_without_an_error(text):
    for kind in KINDS:
        for mode in ("strict", "paper"):
            answer = read_answer(text, kind, mode)
            assert (
                answer is None or (isinstance(answer, float) and abs(answer) < 1e300)
                if kind.startswith("number")
                else answer is None or answer
            )
            if mode == "strict" and kind.startswith("number"):
                assert answer is None or abs(answer) <= 1e100
    reaches(text, "True")
    is_right(text, text)
