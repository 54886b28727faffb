"""Chat templates rendered in Jinja's sandbox: the part that runs in a child process.

`render_all` is what the child is asked for (data/chat_template.py). The sandbox keeps a template
from Python's objects and from files. files/bounded.py limits memory and time, `Sandboxed` the
characters that all texts of a template have together.
"""

import json
import re
from contextvars import ContextVar
from datetime import date
from functools import cache, lru_cache
from itertools import islice

from data.assistant_turns import conversation
from data.chat_template import Messages, RefusedMessages
from files.bounded import Budget
from files.errors import UserError

LONGEST = 20_000  # characters that a template may write, beside ten times those it is given
DAY = date(2024, 7, 26)  # what strftime_now says, so that a text to train on stays the same
PRIVATE_USE = range(0xF0000, 0x10FFFE)  # characters without a meaning, to mark blocks with


class GenerationBlocks:
    """Of one rendering: the strings to put around each generation block, and how many it met."""

    def __init__(self, before: str = "", after: str = ""):
        self.before, self.after, self.count = before, after, 0


CURRENT_BLOCKS: ContextVar[GenerationBlocks] = ContextVar("generation_blocks")


def render_all(request: dict) -> list[tuple]:
    """For each chat (result of a kind of text, why the template refuses the messages or None)."""
    template = sandboxed(request["text"])
    render = getattr(template, request["kind"])
    template.special, template.patience = request["special"], request["patience"]
    results: list[tuple] = []
    for messages, ask in request["chats"]:
        try:
            results.append((render(messages, ask), None))
        except RefusedMessages as error:
            results.append((None, str(error)))
    return results


class Sandboxed:
    """A chat template, and what all its texts together took so far and may take."""

    def __init__(self, text: str):
        self.text, self.special, self.patience = text, {}, 2.0
        self.budget = Budget(8.0, 0.005)  # published templates take a thousandth of it
        self.characters, self.characters_allowed = 0, 10_000_000

    def plain(self, messages: Messages, ask: bool) -> str:
        """What the template makes of the messages."""
        return self.render(messages, ask, GenerationBlocks())

    def as_conversation(self, messages: Messages, ask: bool) -> tuple:
        """The fields of the Conversation that data/assistant_turns.py finds."""
        chat = conversation(self.with_spans, messages)
        return chat.text, chat.spans, chat.opens, chat.marked

    def with_spans(self, messages: Messages, ask: bool) -> tuple[str, list[tuple[int, int]]]:
        """(text, the character spans inside {% generation %} blocks).

        A second rendering with a mark around each block finds them, so that they are right in
        macros and {% set %} blocks too, where transformers 5.24 takes the start of the macro's
        output. Raises UserError where a block's output goes through a filter that moves the marks.
        """
        blocks = GenerationBlocks()
        plain = self.render(messages, ask, blocks)
        if not blocks.count:
            return plain, []
        before, after = islice((mark for mark in map(chr, PRIVATE_USE) if mark not in plain), 2)
        marked = self.render(messages, ask, GenerationBlocks(before, after))
        spans = spans_between(marked, before, after)
        if spans is None or marked.replace(before, "").replace(after, "") != plain:
            raise UserError(
                "the chat template changes the text of its {% generation %} blocks afterwards "
                "(a filter?), so that they cannot be found in the text: use another --template"
            )
        return plain, spans

    def render(self, messages: Messages, ask: bool, blocks: GenerationBlocks) -> str:
        variables = {
            "messages": messages, "add_generation_prompt": ask, "tools": None, "documents": None
        }  # fmt: skip
        given = sum(len(str(message.get("content"))) for message in messages)
        parts, length, longest = [], 0, LONGEST + 10 * given
        sandbox()  # imports Jinja, which takes time of its own
        token = CURRENT_BLOCKS.set(blocks)
        try:
            with self.budget.piece("the chat template", self.patience, 1e-6 * given):
                for part in compiled(self.text).generate(**variables | self.special):
                    parts.append(part)
                    length += len(part)
                    if length > longest:
                        said = f"the chat template writes more than {longest:,} characters"
                        raise UserError(said)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever a template can make Jinja raise
            message = " ".join(str(error).split())[:200]
            raise RefusedMessages(
                f"the chat template cannot be used: {type(error).__name__}: {message}"
            ) from None
        finally:
            CURRENT_BLOCKS.reset(token)
            self.add_up(given, length)
        return "".join(parts)

    def add_up(self, given: int, written: int) -> None:
        """Count a text of `written` characters. Raises UserError where all have too many."""
        self.characters += written
        self.characters_allowed += 10_000 + 10 * given
        if self.characters > self.characters_allowed:
            raise UserError(
                f"the chat template writes more than {self.characters_allowed:,} characters in all"
            )


sandboxed = lru_cache(maxsize=8)(Sandboxed)


def spans_between(marked: str, before: str, after: str) -> list[tuple[int, int]] | None:
    """Where the text between the marks lies once the marks are removed; None where one has no pair.

    Of nested pairs, the outermost counts.
    """
    spans: list[tuple[int, int]] = []
    at = depth = start = 0
    for part in re.split(f"([{before}{after}])", marked):
        if part == before:
            start = start if depth else at
            depth += 1
        elif part == after:
            depth -= 1
            if depth < 0:
                return None
            if not depth and at > start:
                spans.append((start, at))
        else:
            at += len(part)
    return None if depth else spans


@lru_cache(maxsize=8)
def compiled(text: str):
    """The chat template in the sandbox."""
    return sandbox().from_string(text)


@cache
def sandbox():
    """Jinja's sandbox, with the functions that published templates expect."""
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("chat templates need the package jinja2: pip install jinja2") from None

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: the text between them stays as it is."""

        tags = frozenset(("generation",))

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

        def _block(self, caller) -> str:
            blocks = CURRENT_BLOCKS.get()
            blocks.count += 1
            return f"{blocks.before}{caller()}{blocks.after}"

    def refuse(message: str):
        message = " ".join(str(message).split())[:200]
        raise RefusedMessages(f"the chat template refuses these messages: {message}")

    def as_json(value, indent=None, ensure_ascii=False, separators=None, sort_keys=False) -> str:
        form = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)  # Jinja's own is for HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": DAY.strftime}
    environment.filters["tojson"] = as_json
    return environment
