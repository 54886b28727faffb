"""Chat templates as transformers renders them."""

import json
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import transformers

from data.batches import encode_row
from data.prompts import TEMPLATES, Template, template
from data.stored_template import template_from
from model import UserError, load_tokenizer
from model.registry import POCKET

ROW = {"instruction": "Add them.", "input": "1 and 2", "output": "It is 3."}


# ---------------------------------------------------------------- stored with an adapter
CHAT = Template(
    "chat",
    "{{ messages[0].content }}",
    chat=True,
    special=(("bos_token", "<s>"), ("eos_token", "</s>")),
)


# ---------------------------------------------------------------- chat templates
CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set \
system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must \
alternate') }}{% endif %}
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' \
[/INST]' }}
    {% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + \
eos_token }}{% endif %}
{% endfor %}"""
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + date_string + \
message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- \
endif %}
"""
CONTROLS = """{%- set ns = namespace(found=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- set ns.found = true -%}{{ message.content | tojson }}{{ '=' * 3 }}{{ "%d" if false }}{% \
if loop.last %}{% break %}{% endif %}
{%- endfor -%}
{%- if add_generation_prompt and ns.found %}>{% endif %}"""
CHATS = {"ChatML": CHATML, "LLaMA 2": LLAMA_2, "LLaMA 3": LLAMA_3, "loop controls": CONTROLS}


def tokenizer_folder(folder: Path, chat, file: bool = False, **more) -> Path:
    folder.mkdir(exist_ok=True)
    names = (
        json.loads((POCKET / "llama" / "tokenizer_config.json").read_text())
        | {"bos_token": "<pad>"}
        | more
    )
    (folder / "tokenizer.json").write_bytes((POCKET / "llama" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names if file else names | {"chat_template": chat})
    )
    if file:
        (folder / "chat_template.jinja").write_text(chat)
    return folder


@pytest.mark.parametrize("where", ["text", "named", "file"])
@pytest.mark.parametrize("name", CHATS)
def test_chat_templates_as_transformers_renders_them(tmp_path, name, where):
    chat = (
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATS[name]}]
        if where == "named"
        else CHATS[name]
    )
    folder = tokenizer_folder(tmp_path / "words", chat, where == "file")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = template("chat", load_tokenizer(str(folder)))
    assert template_from(ours.table()) == ours
    for row in (
        ROW,
        ROW | {"input": ""},
        ROW | {"instruction": "<b>{{ 1 }} 'é' \"q\" & {% raw %}"},
    ):
        messages = ours.question(row)
        assert ours.prompt(row) == reference.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        answered = [*messages, {"role": "assistant", "content": row["output"]}]
        if name != "loop controls":  # it puts '>' in front of a response in the prompt alone
            assert (
                ours.whole(row) == reference.apply_chat_template(answered, tokenize=False).rstrip()
            )
    if name == "loop controls":
        with pytest.raises(UserError, match="puts something else before a response"):
            ours.whole(ROW)


def test_an_input_is_a_paragraph_behind_the_instruction():
    assert CHAT.question(ROW) == [{"role": "user", "content": "Add them.\n\n1 and 2"}]


def test_a_tokenizer_without_a_chat_template(tmp_path):
    for chat in (None, 5, [], [{"name": "tool_use", "template": "x"}]):
        with pytest.raises(
            UserError,
            match="has no chat template; use --template alpaca, paper-v1, paper-final, plain",
        ):
            template("chat", load_tokenizer(str(tokenizer_folder(tmp_path / "words", chat))))
    with pytest.raises(UserError, match="200,000 characters, too many"):
        template("chat", load_tokenizer(str(tokenizer_folder(tmp_path / "words", "x" * 200_000))))


@pytest.mark.parametrize("name", [*TEMPLATES, "ChatML", "LLaMA 2"])
def test_training_text_is_prompt_response_and_end(tmp_path, name):
    folder = tokenizer_folder(tmp_path / "words", CHATS.get(name))
    words = load_tokenizer(str(folder))
    form = template("chat", words) if name in CHATS else template(name)
    example, cut = encode_row(words, ROW, form, cutoff=10_000)
    learned = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    asked = [
        token for token, weight in zip(example.ids, example.weights, strict=True) if not weight
    ]
    assert not cut
    assert set(example.weights) == {0.0, 1.0}
    assert example.weights == sorted(example.weights)  # the response is at the end
    assert learned[-1] == words.eos_id
    assert example.ids.count(words.eos_id) == 1
    assert (
        words.decode(asked).strip()
        == words.decode(words.encode(form.prompt(ROW), bos=False)).strip()
    )
    assert words.decode(learned).strip().removesuffix("<|im_end|>") == "It is 3."


def test_a_chat_template_writes_its_own_bos_and_none_is_put_before_it():
    from data.batches import encode_prompt, encode_row
    from data.prompts import Template

    class Words:
        eos_id = 2

        def encode(self, text, bos=True):
            return ([1] if bos else []) + [ord(one) for one in text]

        def encode_with_offsets(self, text):
            return self.encode(text, bos=False), [(i, i + 1) for i in range(len(text))]

        def is_special(self, token):
            return token == self.eos_id

        special_tokens, inner = MappingProxyType({}), SimpleNamespace(added={})

    chat = Template(
        "chat",
        "{{ bos_token }}{% for one in messages %}{{ one['content'] }}|{% endfor %}",
        chat=True,
        special=(("bos_token", "<"),),
    )
    row = {"instruction": "a", "output": "b"}
    assert encode_prompt(Words(), row, chat) == ("<a|", [ord("<"), ord("a"), ord("|")])
    example, _ = encode_row(Words(), row, chat, cutoff=10)
    assert example.ids == [*map(ord, "<a|b|"), 2]
    assert example.weights == [0, 0, 0, 1, 1, 1]
    plain = Template("plain", "{instruction}\n")
    assert encode_prompt(Words(), row, plain)[1] == [1, ord("a"), ord("\n")]
