"""Conversations: which tokens have the loss."""

import json

import pytest
import transformers

from data.assistant_turns import conversation
from data.batches import encode_prompt, encode_row
from data.chat_template import RefusedMessages
from data.conversations import conversation_row
from data.prompts import AUTO, TEMPLATES, Template, template
from data.rendering import Sandboxed
from model import load_tokenizer
from model.registry import POCKET

TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Add 1 and 2."},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "And 4?"},
    {"role": "assistant", "content": "7"},
]


# ---------------------------------------------------------------- chat templates
TURN = "{{ '<|' + m.role + '|>' + m.content + '<end>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m.content + '<end>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + ASK
)
TRIMMED = (
    "{% for m in messages %}{{ '<|' + m.role + '|> ' + m.content | trim }} </s>{% endfor %}" + ASK
)
NO_SYSTEM = (  # as Mistral's: the system message goes into the last user turn
    "{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if messages[0].role == 'system' and loop.index0 >= messages | length - 2 %}"
    "{{ messages[0].content + ' ' }}{% endif %}"
    "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)
THINKS = (  # as DeepSeek-R1's: opens <think> in the prompt, drops what was thought
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<end>' }}"
    "{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
EMPTY_THOUGHT = (  # as Qwen3's: the last turn has an empty thought, earlier ones have none
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] + '<end>\\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + ASK
)


def said(text: str, messages=TWO_TURNS) -> tuple[str, list[str]]:
    """(the text of a conversation, what of it has the loss)."""
    chat = conversation(Sandboxed(text).with_spans, list(messages))
    return chat.text, [chat.text[start:end] for start, end in chat.spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHATML, ["3<end>", "7<end>"]),
        (MARKED, ["3<end>", "7<end>"]),
        (TRIMMED, ["3 </s>", "7 </s>"]),
        (NO_SYSTEM, ["3</s>", "7</s>"]),
        (THINKS, ["3<end>", "7<end>"]),
        (EMPTY_THOUGHT, ["3<end>", "<think>\n\n</think>\n\n7<end>"]),
    ],
)
def test_the_loss_is_on_every_assistant_turn(text, expected):
    whole, spans = said(text)
    assert [span.strip() for span in spans] == expected
    assert whole.endswith(expected[-1])


@pytest.mark.parametrize("text", [CHATML, TRIMMED, NO_SYSTEM, THINKS, EMPTY_THOUGHT])
def test_an_answer_that_the_question_holds_too(text):
    """The loss is on the answer, not on the same words in the question or the system message."""
    messages = [
        {"role": "system", "content": "Say blue or red."},
        {"role": "user", "content": "Is it red or blue? Say red or blue."},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "Not red, blue?"},
        {"role": "assistant", "content": "red"},
    ]
    chat = conversation(Sandboxed(text).with_spans, messages)
    for (start, end), answer, other in zip(
        chat.spans, ("blue", "red"), ("red", "blue"), strict=True
    ):
        assert answer in chat.text[start:end]
        assert other not in chat.text[start:end]
    behind = chat.text[chat.spans[0][1] :]
    assert "Not red, blue?" in behind
    assert "Is it red" not in behind


def test_an_end_of_turn_that_differs_at_the_end(words):
    """Phi-3's and the first Llama-3's kind: the last turn is followed by more than others are."""
    turn = "{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token }}{% endfor %}"
    for text in (turn + "{{ '[assistant]' }}", turn + "{% if not add_generation_prompt %}"
                 "<pad>{% else %}{{ '[assistant]' }}{% endif %}"):  # fmt: skip
        ours, _ = words(text)
        example, _ = encode_row(ours, conversation_row(TWO_TURNS), template("chat", ours), 10_000)
        runs = [run.replace(" ", "") for run in learned(ours, example)]
        assert runs == ["3<eos>", "7<eos>"]
        assert example.ids[-1] == ours.eos_id


def test_reasoning_beside_the_content():
    row = conversation_row([
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "because\n", "content": "\nb"},
    ])  # fmt: skip
    assert row["output"] == "<think>\nbecause\n</think>\n\nb"


def test_a_thought_that_the_prompt_opens():
    form = Template("chat", THINKS, chat=True)
    for output in ("So 3.</think>3", "<think>\nSo 3.</think>3"):  # with the tag or without
        messages = [TWO_TURNS[1], {"role": "assistant", "content": output}]
        chat = conversation(Sandboxed(THINKS).with_spans, messages)
        assert chat.text == "<|user|>Add 1 and 2.<|assistant|><think>\nSo 3.</think>3<end>"
        assert chat.text[slice(*chat.spans[0])] == "So 3.</think>3<end>"
        assert chat.opens == "<think>\n"
    assert form.whole({"instruction": "a", "output": "b"}).startswith(
        form.prompt({"instruction": "a"})
    )


def test_earlier_thoughts_that_a_template_drops():
    messages = [dict(one) for one in TWO_TURNS]
    messages[2]["content"] = "<think>1 + 2</think>\n3"
    assert said(EMPTY_THOUGHT, messages)[1][0] == "\n3<end>"


@pytest.mark.parametrize("text", [CHATML, MARKED, EMPTY_THOUGHT])
def test_a_turn_of_weight_0_has_no_loss(text):
    messages = [dict(one) for one in TWO_TURNS]
    messages[2]["weight"] = 0
    spans = said(text, messages)[1]
    assert len(spans) == 1
    assert spans[0].endswith("7<end>")


def test_a_response_that_the_prompt_does_not_lead_to():
    other = CHATML.replace("'<|assistant|>'", "'<|assistant|>Well, '")
    with pytest.raises(RefusedMessages, match="something else before a response"):
        said(other)
    hidden = CHATML.replace(
        "m.content", "(m.content if loop.last or m.role != 'assistant' else '?')"
    )
    with pytest.raises(RefusedMessages, match="an earlier assistant turn is not in what"):
        said(hidden)


# ---------------------------------------------------------------- tokens
@pytest.fixture
def words(tmp_path):
    """words(chat template): pocket-llama's tokenizer with it, ours and transformers'."""

    def make(text: str):
        names = json.loads((POCKET / "llama" / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": text}))
        (tmp_path / "tokenizer.json").write_bytes(
            (POCKET / "llama" / "tokenizer.json").read_bytes()
        )
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        return load_tokenizer(str(tmp_path)), theirs

    return make


def learned(tokenizer, example) -> list[str]:
    """The runs of tokens with loss, as texts."""
    runs: list[list[int]] = [[]]
    for token, weight in zip(example.ids, example.weights, strict=True):
        if weight:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.inner.inner.decode(run, skip_special_tokens=False) for run in runs if run]


EOS_MARKED = MARKED.replace("'<end>'", "eos_token")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ids_and_mask_are_those_of_transformers(words, count):
    ours, theirs = words(EOS_MARKED)
    messages = [
        {"role": role, "content": f"{text} {turn}"}
        for turn in range(count)
        for role, text in (("user", "Tom has 3 pens. \n How many?"), ("assistant", "3 + 4 = 7 é"))
    ]
    example, _ = encode_row(ours, conversation_row(messages), template("chat", ours), 10_000)
    expected = theirs.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    length = len(example.ids)
    assert example.ids == expected["input_ids"][:length]
    assert example.weights == expected["assistant_masks"][:length]
    assert sum(expected["assistant_masks"][length:]) == 0
    assert example.ids[-1] == ours.eos_id  # it is the end of the turn: no second one follows
    assert example.ids[-2] != ours.eos_id


def test_an_end_to_learn_where_the_template_writes_none(words):
    ours, _ = words("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")  # fmt: skip
    row = {"instruction": "Add 1 and 2.", "output": "3"}
    example, _ = encode_row(ours, row, template("chat", ours), 10_000)
    assert (example.ids[-1], example.weights[-1]) == (ours.eos_id, 1.0)
    assert [text.replace(" ", "") for text in learned(ours, example)] == ["3<eos>"]


def test_a_prompt_weight_is_on_all_that_is_no_response(words):
    ours, _ = words(EOS_MARKED)
    row = conversation_row(TWO_TURNS)
    plain, _ = encode_row(ours, row, template("chat", ours), 10_000)
    example, _ = encode_row(ours, row, template("chat", ours), 10_000, prompt_weight=0.5)
    assert example.weights == [weight or 0.5 for weight in plain.weights]
    assert 0.0 in plain.weights


# ---------------------------------------------------------------- templates that are no chat
def test_turns_of_alpaca():
    ours = load_tokenizer("pocket-llama")
    form = TEMPLATES["alpaca"]
    row = conversation_row(TWO_TURNS) | {"input": "Just the number."}
    turns = form.turns(row)
    assert turns[0][0].startswith("Be brief.\n\nBelow is an instruction")
    assert turns[0][0].endswith("### Instruction:\nAdd 1 and 2.\n\n### Response:\n")
    assert turns[1][0] == (
        "### Instruction:\nAnd 4?\n\n### Input:\nJust the number.\n\n### Response:\n"
    )
    assert form.prompt(row) == f"{turns[0][0]}3\n\n{turns[1][0]}"
    example, _ = encode_row(ours, row, form, 10_000)
    assert [text.replace(" ", "") for text in learned(ours, example)] == ["3<eos>", "7<eos>"]
    _, ids = encode_prompt(ours, row, form)
    assert ids == example.ids[: len(ids)]  # what generation sees is what training saw
    assert example.ids[len(ids)] not in ids[-1:]
    unweighted = row | {"history": [*TWO_TURNS[:2], TWO_TURNS[2] | {"weight": 0}]}
    example, _ = encode_row(ours, unweighted, form, 10_000)
    assert [text.replace(" ", "") for text in learned(ours, example)] == ["7<eos>"]


def test_a_plain_row_is_as_it_was():
    for form in TEMPLATES.values():
        row = {"instruction": "Add them.", "input": "1 and 2", "output": "3"}
        assert [form.prompt(row), form.trim("3")] == list(form.turns(row)[0][:2])


@pytest.mark.parametrize("messages", [TWO_TURNS[2:], [TWO_TURNS[2], TWO_TURNS[2]]])
def test_a_conversation_that_begins_with_the_assistant(messages):
    row = conversation_row(messages)
    with pytest.raises(RefusedMessages, match="no place for an assistant turn"):
        TEMPLATES["alpaca"].turns(row)
    text = Template("chat", CHATML, chat=True).whole(row)
    assert text.startswith("<|assistant|>3")  # a chat template decides for itself


def test_which_template_auto_is(words):
    ours, _ = words(CHATML)
    without = load_tokenizer("pocket-llama")
    assert template(AUTO, ours, is_own=True).name == "chat"
    assert template(AUTO, ours, is_own=False).name == "alpaca"  # the paper's sets
    assert template(AUTO, without, is_own=True).name == "alpaca"
    assert template(AUTO).name == "alpaca"
