"""Prompts to the byte, templates stored and read back."""

import json

import pytest

from data.prompts import NAMES, TEMPLATES, Template, prompt, template
from data.stored_template import stored_template, template_from
from model import UserError

ROW = {"instruction": "Add them.", "input": "1 and 2", "output": "It is 3."}
GAP = 16 * " "


# ---------------------------------------------------------------- the named templates
PAPER = (  # white space at the end of a line spelled out
    "Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.  # noqa: E501\n"
    "\n"
    "                ### Instruction:\n"
    "                Add them.\n"
    "                \n"
    "                ### Response:\n"
    "                "
)
PAPER_INPUT = (
    "Below is an instruction that describes a task, paired with an input that "
    "provides further context. "
    "Write a response that appropriately completes the request.  # noqa: E501\n"
    "\n"
    "                ### Instruction:\n"
    "                Add them.\n"
    "                \n"
    "                ### Input:\n"
    "                1 and 2\n"
    "                \n"
    "                ### Response:\n"
    "                "
)
FINAL = PAPER.replace("request.  # noqa: E501", "request.  ")  # two spaces before the line end
FINAL_INPUT = PAPER_INPUT.replace("request.  # noqa: E501", "request. ")
ALPACA = """\
Below is an instruction that describes a task. Write a response that appropriately completes the \
request.

### Instruction:
Add them.

### Response:
"""
ALPACA_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Add them.

### Input:
1 and 2

### Response:
"""


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("paper-v1", "", PAPER), ("paper-v1", "1 and 2", PAPER_INPUT), ("alpaca", "", ALPACA),
        ("paper-final", "", FINAL), ("paper-final", "1 and 2", FINAL_INPUT),
        ("alpaca", "1 and 2", ALPACA_INPUT),
        ("plain", "", "Add them.\n"), ("plain", "1 and 2", "Add them.\n1 and 2\n"),
    ],
)  # fmt: skip
def test_to_the_byte(name, given, text):
    assert prompt(name, "Add them.", given) == text
    assert template(name).whole(ROW | {"input": given}) == text + "It is 3."


def test_white_space_around_texts():
    row = {"instruction": "\n Add them. ", "input": " ", "output": " It is 3.\n"}
    assert template("alpaca").whole(row) == ALPACA + "It is 3."
    text = template("paper-v1").whole(
        row | {"input": ""}
    )  # left as it is: the paper's rationales begin with a line end, which it trained on
    assert text == PAPER.replace("Add them.", "\n Add them. ") + " It is 3.\n"
    assert prompt("alpaca", "Add them.", None) == ALPACA


@pytest.mark.parametrize("name", TEMPLATES)
def test_slots_in_a_users_text_stay_as_they_are(name):
    one, other = "Print {input} and {instruction} and {}.", "{instruction} {input} {0}"
    plain = prompt(name, "AAA", "BBB")
    assert prompt(name, one, other) == plain.replace("AAA", "\0").replace("BBB", other).replace(
        "\0", one
    )
    assert prompt(name, one) == prompt(name, "AAA").replace("AAA", one)


def test_unknown_names():
    with pytest.raises(UserError, match="unknown prompt template 'alpacca'; did you mean 'alpaca'"):
        template("alpacca")
    with pytest.raises(UserError, match="no tokenizer is given"):
        template("chat")


# ---------------------------------------------------------------- stored with an adapter
CHAT = Template(
    "chat",
    "{{ messages[0].content }}",
    chat=True,
    special=(("bos_token", "<s>"), ("eos_token", "</s>")),
)


@pytest.mark.parametrize("one", [*TEMPLATES.values(), CHAT], ids=NAMES)
def test_round_trip(one):
    assert template_from(json.loads(json.dumps(one.table()))) == one


@pytest.mark.parametrize(
    "table",
    [
        None, [], "alpaca", {}, {"name": "a"}, {"text": "{instruction}"},
        {"name": "a", "text": None}, {"name": "a", "text": "{instruction}", "more": 1},
        {"name": "a", "text": "{instruction}", "strip": 1},
        {"name": "a", "text": "{instruction}", "chat": "yes"}, {"name": 3, "text": "{instruction}"},
        {"name": "a", "text": "{instruction}", "special": []},
        {"name": "a", "text": "{instruction}", "special": {"bos_token": 1}},
        {"name": "a", "text": "always the same"}, {"name": "a", "text": "{instruction}",
            "with_input": "{instruction}"},
        {"name": "a", "text": "{instruction}" * 10_000},
        {"name": "a", "text": "x" * 200_000, "chat": True},
    ],
)  # fmt: skip
def test_malformed_tables(table):
    with pytest.raises(UserError, match="template that is stored with the adapter"):
        template_from(table)


def test_a_stored_template_without_a_form_for_inputs_keeps_them():
    assert (
        template_from({"name": "a", "text": "Q: {instruction}\nA: "}).prompt(ROW)
        == "Q: Add them.\n\n1 and 2\nA: "
    )


def test_adapters_that_were_trained_alike():
    alpaca, other = (
        {"template": "alpaca", "template_text": TEMPLATES["alpaca"].table()},
        {"template": "plain"},
    )
    assert stored_template([]) is None
    assert stored_template([{}, {"template": None}]) is None
    assert (
        stored_template([alpaca, {"template": "alpaca"}, {}]) == TEMPLATES["alpaca"]
    )  # earlier files have the name alone
    with pytest.raises(UserError, match="trained with different prompt templates: alpaca, plain"):
        stored_template([alpaca, other])
    changed = alpaca | {"template_text": alpaca["template_text"] | {"text": "{instruction}"}}
    assert stored_template([changed]).text == "{instruction}"  # the text counts, not the name
    with pytest.raises(UserError, match="different prompt templates: alpaca, alpaca"):
        stored_template([alpaca, changed])
