"""A conversation with a model and its adapters, without the terminal around it."""

import json
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from data.wordproblems import HELD_OUT, problems
from eval.sampling import Sampling
from experiments.base import toy_lines
from files.errors import UserError
from files.terminal import escaped
from files.writing import write_text
from serve.loop import Loop
from serve.questions import Question

NARROW = 60  # columns of a terminal: below, answers stand one below the other
GAP = 3  # columns between answers side by side


class Conversation:
    """What was said so far, and who answers next: the base ("") or an adapter.

    most: tokens of an answer. seed: of the first drawn answer; the next have those after it.
    """

    def __init__(
        self, loop: Loop, base: str, sampling: Sampling | None = None, seed: int = 0,
        most: int = 512, system: str = "",
    ):  # fmt: skip
        self.loop, self.base, self.adapter = loop, base, ""
        self.sampling, self.seed, self.most, self.system = sampling, seed, most, system
        self.turns: list[dict] = []

    @property
    def name(self) -> str:
        """Of who answers."""
        return self.adapter or self.base

    @property
    def said(self) -> list[dict]:
        """The messages so far."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def switch(self, name: str) -> None:
        """Let another answer, with the conversation as it is. Raises UserError."""
        names = [self.base, *self.loop.shelf.named]
        if name not in names:
            raise UserError(f"there is no adapter {name!r}: choose from {', '.join(names)}")
        self.adapter = "" if name == self.base else name

    def ask(self, text: str) -> Iterator[str]:
        """The answer piece by piece; as far as it was taken, it is part of what was said.

        Raises UserError where there is no room for it: what was said stays as it was.
        """
        question = self.question(text, self.adapter)
        said = {"role": "user", "content": text}
        self.turns += [said, {"role": "assistant", "content": ""}]
        self.seed += 1
        with closing(self.loop.pieces(question)) as pieces:
            for piece in pieces:
                self.turns[-1]["content"] += piece.text
                yield piece.text

    def compare(self, text: str) -> dict[str, str]:
        """The answers of the base and of the adapters to the same text, made at the same time.

        The one of who answers now becomes part of what was said. Raises UserError.
        """
        names = ["", *([self.adapter] if self.adapter else self.loop.shelf.named)]
        questions = [self.question(text, name) for name in names]
        self.seed += 1
        streams = [self.loop.pieces(question) for question in questions]
        answers = dict.fromkeys(names, "")
        try:
            live = dict(zip(names, streams, strict=True))
            while live:
                for name in list(live):
                    piece = next(live[name], None)
                    if piece is None:
                        del live[name]
                    else:
                        answers[name] += piece.text
        finally:
            for stream in streams:
                stream.close()
        self.turns.append({"role": "user", "content": text})
        self.turns.append({"role": "assistant", "content": answers[self.adapter]})
        return {name or self.base: answer for name, answer in answers.items()}

    def compare_last(self) -> dict[str, str]:
        """`compare` of the last question, whose answer is made anew. Raises UserError."""
        if not self.turns:
            raise UserError("/compare TEXT: there is no earlier question to compare answers to")
        *before, question, _ = last = self.turns
        self.turns = before
        try:
            return self.compare(question["content"])
        except BaseException:
            self.turns = last
            raise

    def question(self, text: str, adapter: str) -> Question:
        """Raises UserError where there is no room for an answer."""
        ids = self.loop.prompt(adapter, [*self.said, {"role": "user", "content": text}])
        question = Question(ids, 1, adapter, self.sampling, self.seed)
        room = self.loop.room(question)
        if room < 1:
            raise UserError(
                f"{len(ids)} tokens leave no room for an answer, the model reads "
                f"{room + len(ids)}: /reset begins anew"
            )
        return replace(question, max_new_tokens=min(self.most, room))

    def reset(self) -> None:
        self.turns.clear()

    def save(self, path: str) -> None:
        """Write what was said as one line of JSON that `--data` reads. Raises UserError."""
        if not self.turns:
            raise UserError("nothing was said yet: there is nothing to save")
        if Path(path).exists():
            raise UserError(f"{path} exists: give another name")
        write_text(Path(path), json.dumps({"messages": self.said}) + "\n")


def toy_notes(base: str) -> list[str]:
    """What a pocket model can do, and three problems to give it; of other models nothing."""
    lines = toy_lines(base)
    if not lines:
        return []
    kinds = ("addsub", "svamp", HELD_OUT)
    asked = [next(problems(kind, "test", 1))["instruction"] for kind in kinds]
    return [*lines, "try:", *(f"  {problem}" for problem in asked)]


def side_by_side(answers: dict[str, str], width: int) -> str:
    """Answers in columns under their names, or below each other on a narrow terminal."""
    texts = {escaped(name): escaped(text).expandtabs(4) for name, text in answers.items()}
    if width < NARROW:
        return "\n\n".join(f"{name}> {text}" for name, text in texts.items())
    column = (width - GAP * (len(texts) - 1)) // len(texts)
    columns = []
    for name, text in texts.items():
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, column) or [""]]
        columns.append([name[:column], "─" * column, *lines])
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join((" " * GAP).join(f"{cell:{column}}" for cell in row).rstrip() for row in rows)
