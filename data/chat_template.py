"""Chat templates: the Jinja text of a checkpoint, rendered in a sandbox with limits.

A template comes from a checkpoint that nobody has checked. It reaches neither Python's objects nor
files, and one that computes for seconds or writes millions of characters is refused.
"""

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from functools import lru_cache
from itertools import islice

from files.errors import UserError

LONGEST = 10_000_000  # characters that a template may write
PATIENCE = 2.0  # seconds of computing that a template may take; published ones take milliseconds
DAY = date(2024, 7, 26)  # what strftime_now says, so that a text to train on stays the same
PRIVATE_USE = range(
    0xF0000, 0x10FFFE
)  # characters without a meaning, to mark generation blocks with


class RefusedMessages(UserError):
    """A template has no form for these messages; it may have one for others."""


class GenerationBlocks:
    """Of one rendering: the strings to put around each generation block, and how many it met."""

    def __init__(self, before: str = "", after: str = ""):
        self.before, self.after, self.count = before, after, 0


CURRENT_BLOCKS: ContextVar[GenerationBlocks] = ContextVar("generation_blocks")


def render_text(
    text: str, messages: list[dict], *, add_generation_prompt: bool, special: dict[str, str]
) -> str:
    """What the chat template `text` makes of messages {role, content}.

    special: the variables bos_token, eos_token ... of the template. Raises UserError for one
    that is malformed, refuses the messages, takes longer than PATIENCE or writes over LONGEST.
    """
    return _render(text, messages, add_generation_prompt, special, GenerationBlocks())


def render_chat(
    text: str, messages: list[dict], *, add_generation_prompt: bool, special: dict[str, str]
) -> tuple[str, list[tuple[int, int]]]:
    """As `render_text`, and the character spans [start, end) inside {% generation %} blocks.

    The spans are in order, not empty, and do not overlap; without such blocks there are none.
    A second rendering with a mark around each block finds them, so that they are right in macros
    and {% set %} blocks too, where transformers 5.24 takes the start of the macro's output.
    Raises UserError, also where a block's output goes through a filter that moves the marks.
    """
    blocks = GenerationBlocks()
    plain = _render(text, messages, add_generation_prompt, special, blocks)
    if not blocks.count:
        return plain, []
    before, after = islice((mark for mark in map(chr, PRIVATE_USE) if mark not in plain), 2)
    marks = GenerationBlocks(before, after)
    marked = _render(text, messages, add_generation_prompt, special, marks)
    spans = _spans(marked, before, after)
    if spans is None or marked.replace(before, "").replace(after, "") != plain:
        raise UserError(
            "the chat template changes the text of its {% generation %} blocks afterwards "
            "(a filter?), so that they cannot be found in the text: use another --template"
        )
    return plain, spans


def _spans(marked: str, before: str, after: str) -> list[tuple[int, int]] | None:
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


def _render(
    text: str,
    messages: list[dict],
    add_generation_prompt: bool,
    special: dict[str, str],
    blocks: GenerationBlocks,
) -> str:
    given = {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
    }
    parts, length = [], 0
    token = CURRENT_BLOCKS.set(blocks)
    try:
        with limited():
            for part in compiled(text).generate(**given | special):
                parts.append(part)
                length += len(part)
                if length > LONGEST:
                    raise UserError(f"the chat template writes more than {LONGEST:,} characters")
    except UserError:
        raise
    except Exception as error:  # whatever a template can make Jinja raise
        message = " ".join(str(error).split())[:200]
        raise RefusedMessages(
            f"the chat template cannot be used: {type(error).__name__}: {message}"
        ) from None
    finally:
        CURRENT_BLOCKS.reset(token)
    return "".join(parts)


@lru_cache(maxsize=8)
def compiled(text: str):
    """The chat template in the sandbox, with the functions that published ones expect."""
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("chat templates need the package jinja2: pip install jinja2") from None

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context, operator, left, right):
            sizes = [
                value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 0
                for value in (left, right)
            ]
            too_much = {
                "**": max(sizes) > 1000,
                "*": abs(sizes[0] * sizes[1]) > LONGEST,
                "%": isinstance(left, str) and re.search(r"\*|\d{5}", left),
            }
            if too_much[operator]:
                raise UserError(f"the chat template computes too much with {operator}")
            return super().call_binop(context, operator, left, right)

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
        return json.dumps(  # Jinja's own filter writes for HTML
            value,
            indent=indent,
            ensure_ascii=ensure_ascii,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": DAY.strftime}
    environment.filters["tojson"] = as_json
    return environment.from_string(text)


@contextmanager
def limited() -> Iterator[None]:
    """End what takes longer than PATIENCE with a UserError.

    Only in the main thread, and where the system has such alarms.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    began = time.thread_time()

    def ring(*_):
        rest = PATIENCE - (time.thread_time() - began)
        if rest > 0.01:  # others had the processor, or the process was stopped for a while
            signal.setitimer(signal.ITIMER_REAL, rest)
            return
        raise UserError(f"the chat template takes longer than {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    left, again = signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)
        signal.signal(signal.SIGALRM, before)
