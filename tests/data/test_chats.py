"""Conversations: which row a published form becomes."""

import json

import pytest

from data.conversations import Unusable, conversation_row, history_of

TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Add 1 and 2."},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "And 4?"},
    {"role": "assistant", "content": "7"},
]


# ---------------------------------------------------------------- forms -> rows
def test_the_last_assistant_turn_is_the_output():
    assert conversation_row(TWO_TURNS) == {
        "instruction": "And 4?", "input": "", "output": "7", "answer": "", "history": TWO_TURNS[:3],
    }  # fmt: skip


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"role": "prompter", "content": "a"}, {"role": "model", "content": "b"}],
        [{"role": "User", "content": "a"}, {"role": "BOT", "content": "b"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]},
         {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": []},
         {"role": "user", "content": "not answered"}],
        '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]',
    ],
)  # fmt: skip
def test_roles_and_texts_under_other_names(messages):
    row = {"instruction": "a", "input": "", "output": "b", "answer": "", "history": []}
    assert conversation_row(messages) == row


def test_a_system_column_and_turns_without_loss():
    messages = [dict(one) for one in TWO_TURNS[1:]]
    messages[1]["weight"] = 0
    history = conversation_row(messages, "Be kind.")["history"]
    assert history[0] == {"role": "system", "content": "Be kind."}
    assert history[2] == {"role": "assistant", "content": "3", "weight": 0}
    messages[3]["weight"] = 0  # nothing is learned from it: the turn before it is the last one
    messages[1]["weight"] = 1
    assert conversation_row(messages)["output"] == "3"


@pytest.mark.parametrize(
    ("key", "value", "learned"),
    [("weight", 0, False), ("loss_mask", 0, False), ("train", False, False),
     ("trainable", False, False), ("weight", 1, True), ("train", True, True),
     ("train", None, True)],
)  # fmt: skip
def test_names_of_a_turn_without_loss(key, value, learned):
    messages = [dict(one) for one in TWO_TURNS]
    messages[2][key] = value
    assert ("weight" not in conversation_row(messages)["history"][2]) == learned


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "user", "content": "a"}], "has no assistant turn to learn"),
        ([], "is an empty list of messages"),
        ("hello", "is a text, not a list of messages"),
        ({"role": "user"}, "is a dict, not a list of messages"),
        (["a"], "holds a str where a message should be"),
        ([{"role": "tool", "content": "a"}], "a message of role 'tool'"),
        ([{"content": "a"}], "a message of role None"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "has a tool call"),
        ([{"role": "user", "content": None}], "has a message without a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type image"),
        ([{"role": "user", "content": "\ud83d"}], "half a surrogate pair"),
    ],
)
def test_conversations_that_cannot_be_used(messages, why):
    with pytest.raises(Unusable, match=why):
        conversation_row(messages)


def test_earlier_turns_as_pairs_or_messages():
    pairs = [["a", "b"], ["c", "d"]]
    expected = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    for value in (pairs, json.dumps(pairs), history_of(pairs)):
        assert [(one["role"], one["content"]) for one in history_of(value)] == expected
    assert history_of(None) == history_of("") == history_of([]) == []
    for value in ([["a"]], [["a", 1]], ["a"], 5):
        with pytest.raises(Unusable):
            history_of(value)
