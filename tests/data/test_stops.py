"""Which ids end an answer, against transformers' generate and against what the files say."""

import json

import pytest
import torch
from chains import CHATML, IDS, chain
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

import run as command_line
from data.prompts import Template
from data.stops import configured_stop_ids, stop_ids, turn_end
from eval.generate import generate
from eval.predict import predict
from model import UserError, load_model, load_tokenizer

END, TURN, OTHER = IDS["</s>"], IDS["<turn>"], IDS["<other>"]
SAID = "ask red green <turn> blue </s>"


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        (None, {}, [1]),
        (None, {"eos_token_id": None}, []),
        (None, {"eos_token_id": -1}, []),  # LLaMA's first conversions
        (None, {"eos_token_id": [1, 2]}, [1, 2]),
        (None, {"eos_token_id": []}, []),
        ({}, {}, [1]),
        ({"eos_token_id": 2}, {}, [1, 2]),
        ({"eos_token_id": [2, 11, 2]}, {"eos_token_id": None}, [2, 11]),
        ({"eos_token_id": [-1, 2]}, {"eos_token_id": 0}, [0, 2]),
        ({"eos_token_id": None, "max_length": 7}, {"eos_token_id": 2}, [2]),
    ],
)
def test_ids_of_the_two_files(tmp_path, generation, config, ids):
    folder = chain(tmp_path, SAID, config=config, generation=generation)
    assert configured_stop_ids(folder) == ids
    assert stop_ids(load_tokenizer(str(folder))) == sorted({END, *ids})


@pytest.mark.parametrize(
    "value", [True, "2", 2.0, {"a": 2}, [[1], 2], ["</s>"], [1, None], [False]]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_no_id_is_named(tmp_path, name, value):
    folder = chain(tmp_path, SAID, generation={})
    raw = json.loads((folder / name).read_text()) | {"eos_token_id": value}
    (folder / name).write_text(json.dumps(raw))
    with pytest.raises(UserError, match=rf"{name}: eos_token_id should be the number of a token"):
        configured_stop_ids(folder)


def test_ids_that_the_model_cannot_write_are_left_out(tmp_path):
    folder = chain(tmp_path, SAID, generation={"eos_token_id": [2, 12, 128009]})
    tokenizer = load_tokenizer(str(folder))
    assert stop_ids(tokenizer) == [1, 2]
    tokenizer.fit(12)
    assert stop_ids(tokenizer) == [1, 2]


# ---------------------------------------------------------------- the end of a turn
TURNS = {  # name: (template, what ends a turn)
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "<|im_end|>",
    ),
    "Llama 3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}",
        "<|eot_id|>",
    ),
    "Gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content }}<end_of_turn>\n{% endfor %}",
        "<end_of_turn>",
    ),
    "Phi 3": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "Zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}",
        "</s>",
    ),
    "Llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content }}"
        " [/INST]{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "a special token in front": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|channel|>{{ m.content }}<|return|>"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        "<|return|>",
    ),
    "the longer of two": ("{{ messages[-1].content }}<|end|>x", "<|end|>x"),
    "a generation block": (
        "{% for m in messages %}{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% endfor %}",
        "<|end|>",
    ),
    "no end": ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", None),
    "plain text": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}",
        None,
    ),
    "text in front of the end": ("{{ messages[-1].content }} END <|end|>", None),
    "plain text that looks like a token": ("{{ messages[-1].content }}<|stop|>", None),
    "the answer is left out": ("<|end|>{{ messages[0].content }}<|end|>", None),
    "a template that refuses": ("{{ raise_exception('no system message') }}", None),
    "a template that is broken": ("{% for m in %}", None),
    "a template for more messages": ("{{ messages[5].content }}<|end|>", None),
}
TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
          "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|end|>x", "<|channel|>",
          "<|return|>", "<|user|>", "<|assistant|>"]  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", TURNS)
def test_the_token_behind_an_answer(tmp_path, name, special):
    template, end = TURNS[name]
    inner = Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_tokens([AddedToken(token, special=special, normalized=False) for token in TOKENS])
    inner.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = load_tokenizer(str(tmp_path))
    assert turn_end(tokenizer) == (None if end is None else inner.token_to_id(end))
    expected = {inner.token_to_id("</s>"), turn_end(tokenizer)} - {None}
    assert stop_ids(tokenizer) == sorted(expected)


def test_a_tokenizer_without_a_template_has_no_turns(tmp_path):
    assert turn_end(load_tokenizer(str(chain(tmp_path, SAID)))) is None


# ---------------------------------------------------------------- what stops
BARE = Template("chat", "{{ messages[0].content }}", chat=True)
WAYS = {  # how a folder says that <turn> ends an answer
    "generation_config": {"generation": {"eos_token_id": [END, TURN]}},
    "a number there": {"generation": {"eos_token_id": TURN}},
    "config": {"config": {"eos_token_id": [TURN, END]}},
    "the chat template": {"chat": CHATML},
    "the tokenizer": {"tokenizer": {"eos_token": "<turn>"}},
}


@pytest.mark.parametrize("beams", ["1", "3"])
@pytest.mark.parametrize("way", WAYS)
def test_generate_stops(tmp_path, capsys, way, beams):
    folder = chain(tmp_path / "model", SAID, **WAYS[way])
    asked = ["generate", "--model", str(folder), "--prompt", "ask", "--beams", beams]
    assert command_line.main([*asked, "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out.strip() == "red green"


def test_generate_goes_on_where_nothing_says_so(tmp_path, capsys):
    folder = chain(tmp_path / "model", SAID)
    asked = ["generate", "--model", str(folder), "--prompt", "ask", "--max-new-tokens", "9"]
    assert command_line.main(asked) == 0
    assert capsys.readouterr().out.strip() == "red green blue"


def test_ids_in_ids_out_stop_where_the_two_files_say(tmp_path, capsys):
    folder = chain(tmp_path / "model", SAID, generation={"eos_token_id": [END, TURN]}, chat="no")
    (folder / "tokenizer.json").unlink()
    asked = ["generate", "--model", str(folder), "--prompt-ids", str(IDS["ask"])]
    assert command_line.main(asked) == 0
    assert capsys.readouterr().out.strip() == f"{IDS['red']},{IDS['green']}"


@pytest.mark.parametrize("way", WAYS)
def test_evaluate_stops(tmp_path, way):
    folder = chain(tmp_path / "model", SAID, **WAYS[way])
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    rows = [{"instruction": word, "input": "", "answer": "red"} for word in ("ask", "red ask", ".")]
    found = predict(model, tokenizer, {"boolq": rows}, template=BARE, max_new_tokens=5)
    assert [one["output"] for one in found] == [
        "red green",
        "red green",
        "",
    ]  # the last: <s> <s> ...
    assert [one["cut"] for one in found] == [False, False, True]


def test_answers_to_other_stop_ids_are_not_mixed(tmp_path):
    rows = {"boolq": [{"instruction": "ask", "input": "", "answer": "true"}]}
    folder = chain(tmp_path / "model", SAID)
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    how = {"template": BARE, "max_new_tokens": 5, "journal": tmp_path / "answers.part"}
    found = predict(model, tokenizer, rows, **how)
    assert found == predict(model, tokenizer, rows, **how)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    with pytest.raises(UserError, match="made in another way"):
        predict(model, load_tokenizer(str(folder)), rows, **how)


@pytest.mark.parametrize("ends", [[END], [TURN], [TURN, END], [OTHER], [IDS["green"], TURN]])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_several_ends_as_in_transformers(tmp_path, beams, ends):
    folder = chain(tmp_path, SAID)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[IDS["ask"]], [IDS["blue"]]])
    mask = torch.ones_like(ids)
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=6, num_beams=beams, do_sample=False,
        eos_token_id=ends, pad_token_id=IDS["<pad>"],
    )[:, 1:].tolist()  # fmt: skip
    for row in expected:
        del row[next((n for n, token in enumerate(row) if token in [*ends, IDS["<pad>"]]), 6) :]
    found = generate(load_model(str(folder)), ids, max_new_tokens=6, beams=beams, stop_ids=ends)
    assert found == expected
