"""Prompts to the byte, templates stored and read back, chat templates as transformers renders
them, and templates that mean harm.
"""

import json
import threading
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import transformers

from data import chat_template, rendering
from data.batches import encode_row
from data.chat_template import RefusedMessages
from data.prompts import (
    NAMES,
    TEMPLATES,
    Template,
    prompt,
    stored_template,
    template,
    template_from,
)
from model import UserError, load_tokenizer
from model.registry import POCKET

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


# ---------------------------------------------------------------- templates that mean harm
def render(text: str) -> str:
    return Template("chat", text, chat=True).prompt(ROW)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ raise_exception.__globals__.json.codecs.builtins.open('/etc/passwd').read() }}",
        "{{ strftime_now.__self__.__class__.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__[1].__subclasses__}'.format(1)() }}",
        "{{ (messages|map(attribute='__class__')|list)[0].mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('true') }}",
        "{% extends '/etc/passwd' %}",
        "{{ open('/etc/passwd') }}",
        "{{ nothing.at_all }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ raise_exception('not\nfor me') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)  # fmt: skip
def test_it_reaches_neither_python_nor_files(text):
    with pytest.raises(UserError) as error:
        print(render(text))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        ("{% for i in range(99999) %}{% for j in range(99999) "
"%}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}"),
        "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}", "{{ 9**(9**9) }}", "{{ [1] * 99999999 }}",
        "{{ range(99999) | map('string') | join('x' * 99999) | length }}",
        "{{ ('a' * 9999).replace('a', 'b' * 99999) | length }}",
        "{{ '{:999999999}'.format(1) | length }}{{ '%*d' % (999999999, 1) | length }}",
        "{{ 'a' | center(999999999) | length }}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ '%99999999999d' % 1 }}",
        ("{% set n = namespace(t='aaaaaaaa') %}{% for i in range(18) %}{% set "
"n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}") + "{{ n.t }}" * 9,
        "{{ lipsum(n=99999, html=false) }}",
    ],
)  # fmt: skip
def test_endless_loops_and_endless_texts_end(monkeypatch, text):
    monkeypatch.setattr(chat_template, "PATIENCE", 0.3)
    with pytest.raises(
        UserError,
        match=r"the chat template (takes longer than 0.3 s|writes more|needs more than 512 MB)",
    ):
        render(text)
    assert render("{{ messages[0].role }}") == "user"  # in another process, where that one ended


def test_many_texts_take_no_longer_and_write_no_more_than_honest_ones():
    template = rendering.Sandboxed("{{ 'x' * 400000 }}")
    for _ in range(25):
        template.plain([], False)
    with pytest.raises(UserError, match=r"writes more than 10,260,000 characters in all"):
        template.plain([], False)
    template.characters, template.seconds = 0, 100
    with pytest.raises(UserError, match="takes longer than 8 s for all its texts"):
        template.plain([], False)


def test_rows_are_rendered_in_one_go(monkeypatch):
    asked = []
    call = chat_template.call
    monkeypatch.setattr(chat_template, "call", lambda *all: asked.append(all) or call(*all))
    text = "{% if messages[0].content == 'no' %}{{ raise_exception('why') }}{% endif %}" + CHATML
    rows = [ROW, ROW | {"instruction": "no", "input": ""}, ROW | {"output": "4"}] * 200
    form = Template("chat", text, chat=True)
    chats = list(form.conversations(rows))
    assert len(asked) == 2  # of 500 and 100 rows
    assert [str(chat) for chat in chats if isinstance(chat, RefusedMessages)] == (
        ["the chat template refuses these messages: why"] * 200
    )
    assert chats[0] == form.conversation(ROW)
    assert chats[2].text.endswith("4<|im_end|>")


def test_in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(render("{{ messages[0].role }}")))
    thread.start()
    thread.join()
    assert found == ["user"]


def test_a_template_is_compiled_once():
    assert rendering.compiled(CHATML) is rendering.compiled(CHATML)


def test_small_sums_are_no_harm():
    assert render("{{ '-' * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ '%03d' % 5 }}") == "---10243005"


def test_the_date_stands_still():
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


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
