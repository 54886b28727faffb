"""Chat templates that mean harm: no Python, no files, no endless loop, no endless text."""

import threading

import pytest

from data import chat_template, rendering
from data.chat_template import RefusedMessages
from data.prompts import Template
from model import UserError

ROW = {"instruction": "Add them.", "input": "1 and 2", "output": "It is 3."}


# ---------------------------------------------------------------- chat templates
CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


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
    with pytest.raises(UserError, match=r"writes more than 20,000 characters"):
        rendering.Sandboxed("{{ 'x' * 20001 }}").plain([], False)
    template = rendering.Sandboxed("{{ 'x' * 20000 }}")
    template.plain([], False)
    template.characters = 10_000_001
    with pytest.raises(UserError, match=r"writes more than 10,020,000 characters in all"):
        template.plain([], False)
    template.characters, template.budget.spent = 0, 100
    with pytest.raises(UserError, match="longer than 8 s in all"):
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
