"""{% generation %} blocks of chat templates: text and character spans as transformers has them."""

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data.chat_template import render_one
from data.rendering import PRIVATE_USE, Sandboxed, compiled
from model import UserError

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "  1\n"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": "2", "parts": ["a", "b"]},
]
ROLE = "<{{ m.role }}>"
ASSISTANT = "{% if m.role == 'assistant' %}"
TEMPLATES = {
    "around the content": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}</s>\n"
    + "{% endfor %}",
    "around the end too": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "\n    {% generation %}\n    {{ m.content + eos_token }}\n    {% endgeneration %}\n{% else %}"
    + "{{ m.content }}{% endif %}{% endfor %}",
    "white space control": "{% for m in messages %}\n"
    + ROLE
    + "\n"
    + ASSISTANT
    + "\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration -%}\n  {% else %}\n"
    + "{{ m.content }} \n"
    + "{% endif %}{% endfor %}",
    "the left side alone": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + " {%- generation %} {{ m.content }}{%- endgeneration %} !{% endif %}{% endfor %}",
    "a plus sign": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "  {%+ generation +%}\n{{ m.content }}  {%+ endgeneration +%}\n{% endif %}{% endfor %}",
    "a loop inside": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "{% generation %}{% for p in m.parts or ['x'] %}[{{ p }}]"
    + "{% if loop.first %}{% continue %}{% endif %}"
    + "{% endfor %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "in a loop in a loop": "{% for m in messages %}"
    + ROLE
    + "{% for p in m.parts or ['x'] %}-"
    + "{% generation %}{{ p }}{% endgeneration %}{% endfor %}{% endfor %}",
    "a macro inside": "{% macro say(m) %}({{ m.content }}){% endmacro %}{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "{% generation %}{{ say(m) }}{% endgeneration %}{% endif %}{% endfor %}",
    "two in a turn": "{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "{% generation %}a{{ m.content }}"
    + "{% endgeneration %}{% generation %}b{% endgeneration %}|{% endif %}{% endfor %}",
    "variables inside": "{% set ns = namespace(n=0) %}{% set x = 'out' %}{% for m in messages %}"
    + ROLE
    + ASSISTANT
    + "{% generation %}{% set ns.n = ns.n + 1 %}{% set x = 'in' %}{{ ns.n }}{{ x }}"
    + "{% endgeneration %}{{ x }}"
    + "{% endif %}{% endfor %}",
    "the last turn alone": "{% for m in messages %}"
    + ROLE
    + "{% if loop.last %}{% generation %}{{ m.content }}"
    + "{% endgeneration %}{% endif %}{% endfor %}",
    "an empty block": "{% for m in messages %}"
    + ROLE
    + "{% generation %}{% endgeneration %}{% endfor %}",
    "no block is reached": "{% for m in messages %}"
    + ROLE
    + "{% if m.role == 'tool' %}{% generation %}"
    + "{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "the prompt too": "{% for m in messages %}"
    + ROLE
    + "{{ m.content }}{% endfor %}"
    + "{% if add_generation_prompt %}<assistant>{% generation %}{% endgeneration %}{% endif %}",
}


@pytest.fixture(scope="module")
def characters():
    """A tokenizer of transformers with a token for each character: a mask of characters."""
    inner = Tokenizer(
        models.BPE({chr(c): n for n, c in enumerate([*range(33, 127), 288, 266])}, [])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def mask_of(spans: list[tuple[int, int]], length: int) -> list[int]:
    return [int(any(start <= n < end for start, end in spans)) for n in range(length)]


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_spans_are_those_of_transformers(characters, name, ask):
    template, special = TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"}
    asked = {"chat_template": template, "add_generation_prompt": ask, **special}
    theirs = characters.apply_chat_template(
        CHAT, return_assistant_tokens_mask=True, return_dict=True, **asked
    )
    expected = characters.apply_chat_template(CHAT, tokenize=False, **asked)
    text, spans = render_one(template, "with_spans", CHAT, ask, special)
    assert text == expected == render_one(template, "plain", CHAT, ask, special)
    assert len(text) == len(theirs["input_ids"])
    assert mask_of(spans, len(text)) == theirs["assistant_masks"]
    assert all(start < end for start, end in spans)
    assert spans == sorted(spans)


def spans_of(template: str, messages=CHAT) -> tuple[str, list[str]]:
    text, spans = render_one(template, "with_spans", messages, False, {})
    return text, [text[start:end] for start, end in spans]


def test_spans_in_what_jinja_collects_before_it_writes():
    """Macros and {% set %} blocks, where transformers 5.24 takes the start of the macro."""
    macro = "{% macro turn(m) %}" + ROLE + "{% generation %}{{ m.content }}{% endgeneration %};"
    text, found = spans_of(
        macro + "{% endmacro %}{% for m in messages[1:4] %}{{ turn(m) }}{% endfor %}"
    )
    assert (text, found) == ("<user>One?;<assistant>  1\n;<user>Two?;", ["One?", "  1\n", "Two?"])
    block = "{% set x %}a{% generation %}b{% endgeneration %}{% endset %}c{{ x }}{{ x | upper }}"
    assert spans_of(block) == ("cabAB", ["b", "B"])
    nested = "a{% generation %}b{% generation %}c{% endgeneration %}d{% endgeneration %}e"
    assert spans_of(nested) == ("abcde", ["bcd"])


@pytest.mark.parametrize(
    "changed", ["x|reverse", "x|trim", "x|length", "x|truncate(3, true, '', 0)", "x.split('b')[0]"]
)
def test_spans_that_a_filter_moved_are_refused(changed):
    block = "{% set x %}{% generation %} b {% endgeneration %}!{% endset %}"
    template = block + "{{ " + changed + " }}"
    assert render_one(template, "plain", CHAT, False, {})
    with pytest.raises(UserError, match="cannot be found in the text"):
        spans_of(template)


def test_messages_that_hold_the_marks():
    first, second = (chr(number) for number in PRIVATE_USE[:2])
    words = f"{second}x{first}"
    template = (
        "{{ messages[0].content }}{% generation %}{{ messages[0].content }}{% endgeneration %}."
    )
    assert spans_of(template, [{"role": "user", "content": words}]) == (f"{words}{words}.", [words])


def test_a_template_without_blocks_is_rendered_once(monkeypatch):
    plain, rendered = "{% for m in messages %}{{ m.content }}{% endfor %}", []
    kind = type(compiled(plain))
    generate = kind.generate

    def count(*args, **more):
        rendered.append(1)
        return generate(*args, **more)

    monkeypatch.setattr(kind, "generate", count)
    text, spans = Sandboxed(plain).with_spans(CHAT, False)
    assert (text, spans, rendered) == ("".join(m["content"] for m in CHAT), [], [1])


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}",
        "{% endgeneration %}",
        "{% generation x %}{% endgeneration %}",
        "{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    ],
)
def test_malformed_blocks_are_refused_in_one_line(template):
    with pytest.raises(UserError, match="the chat template cannot be used") as error:
        spans_of(template)
    assert "\n" not in str(error.value)
