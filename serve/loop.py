"""The thread that owns a model: questions come from other threads, join a running batch, leave it.

    loop = Loop(model, tokenizer, template)
    loop.load("math", "runs/a/adapter")
    (answer,) = loop.ask((Question(ids, 64, "math"), deliver))    deliver(Piece) in its thread
    loop.cancel(answer)
    loop.stop()                                               what runs is answered to its end

One pass of the engine makes a token for every row, whichever adapters the rows have; what a row
becomes depends on nothing but the row (eval/engine.py).
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from data.batches import encode_prompt
from data.prompts import Template
from data.stops import stop_ids, turn_end
from eval.engine import Engine, Event, Request
from eval.text import TextStream
from files.errors import UserError
from model.language import LanguageModel
from model.tokenizer import Tokenizer
from serve.adapters import Shelf
from serve.metrics import Metrics
from serve.questions import Answer, Piece, Question, Refused

LONGEST = 2048  # tokens of a row, if the model has room for more and nothing else is asked for
SWITCH = 0.0005  # seconds that the thread waits, after each operation, for one that runs Python
YIELD = 1e-4  # seconds after a pass in which others send what it made; 1e-5 may be none at all


class Loop:
    """Answers of one model and its adapters.

    slots: rows at a time. length: the most tokens of a row, prompt and answer (None: those of the
    model, at most LONGEST). waiting: questions that may wait for a slot.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: Template,
        slots: int = 16,
        length: int | None = None,
        waiting: int = 256,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.shelf = Shelf(model.eval(), tokenizer, template)
        self.slots, self.most = slots, slots + waiting
        self.length = length or min(LONGEST, model.shape.positions or LONGEST)
        self.engine = Engine(model, slots, self.length, tokenizer.size)
        self.metrics = Metrics()
        self.answers: dict[int, Answer] = {}  # by their numbers in the engine
        self.count, self.lock = 0, threading.Lock()  # questions that are not over
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.is_stopping = False
        self.thread = threading.Thread(target=self.run, name="answers", daemon=True)

    # ---- from any thread

    def start(self) -> "Loop":
        sys.setswitchinterval(SWITCH)
        self.thread.start()
        return self

    def call(self, function: Callable, *arguments) -> Future:
        """Let the loop's thread call a function between two passes."""
        future: Future = Future()

        def command() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self.commands.put(command)
        return future

    def ask(self, *asked: tuple[Question, Callable[[Piece], None]]) -> list[Answer]:
        """Put questions in line, all or none, each with what gets its pieces. Raises Refused."""
        for question, _ in asked:
            self.shelf.find(question.adapter)
        with self.lock:
            if self.is_stopping:
                raise Refused("stopping", "the server is stopping")
            if self.count + len(asked) > self.most:
                raise Refused("overloaded", f"{self.count} questions are waiting: try again later")
            self.count += len(asked)
        answers = []
        for question, deliver in asked:
            stream = TextStream(self.tokenizer, question.ids, question.stops)
            answers.append(Answer(question, deliver, stream, time.monotonic()))
            self.commands.put(partial(self.submit, answers[-1]))
        return answers

    def cancel(self, answer: Answer) -> None:
        """Nobody waits for this answer any more: its slot is free for others."""
        self.commands.put(lambda: self.withdraw(answer))

    def pieces(self, question: Question) -> Iterator[Piece]:
        """The answer, piece by piece; it is cancelled if the caller takes no more. Raises Refused.

        Raises UserError where the answer could not be made.
        """
        got: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        (answer,) = self.ask((question, got.put))
        piece = Piece()
        try:
            while not piece.ended:
                piece = got.get()
                if piece.error:
                    raise UserError(piece.error)
                yield piece
        finally:
            self.cancel(answer)

    def prompt(self, name: str, messages: list[dict]) -> list[int]:
        """The token ids of a chat {role, content} for the base ("") or an adapter, by its template.

        Raises Refused, and UserError for what the template has no form for.
        """
        row = {"instruction": "", "history": messages}
        return encode_prompt(self.tokenizer, row, self.shelf.find(name).template)[1]

    def room(self, question: Question) -> int:
        """The most tokens that an answer after this prompt may have. Raises Refused."""
        engine, entry = self.engine, self.shelf.find(question.adapter).entry
        room = engine.room(entry)
        if self.model.shape.table:  # the last new token takes no position
            room = min(room, self.model.shape.positions + 1 - engine.fronts.columns(entry))
        return room - len(question.ids)

    def load(self, name: str, folder: str | Path) -> None:
        """Serve the adapter of a folder under a name. Raises UserError."""

        def command() -> None:
            entries = []
            try:
                served = self.shelf.load(name, folder)
                entries.append(served.entry)
            finally:  # after an error too the Rows are others
                self.engine.reseat(entries)
            self.shelf.named[name] = served

        self.in_loop(command)

    def unload(self, name: str) -> None:
        """Serve an adapter no longer; what it is answering ends first. Raises Refused."""
        self.in_loop(lambda: (self.shelf.unload(name), self.engine.reseat([])))

    def in_loop(self, command: Callable[[], None]) -> None:
        self.call(command).result() if self.thread.is_alive() else command()

    def stop(self, seconds: float | None = None) -> None:
        """Take no more questions, answer those that are there (for so long), end the thread."""
        with self.lock:
            self.is_stopping = True
        self.commands.put(lambda: None)
        if self.thread.is_alive():
            self.thread.join(seconds)

    # ---- in the loop's thread

    def run(self) -> None:
        def is_over() -> bool:
            return self.is_stopping and not self.count

        while not (is_over() and self.engine.is_idle):
            with suppress(queue.Empty):
                while True:
                    self.commands.get(block=self.engine.is_idle and not is_over())()
            try:
                events = self.engine.step()
            except Exception as error:
                self.fail(error)
                continue
            for event in events:
                if answer := self.answers.get(event.number):  # none: an event before ended it
                    self.hand_out(answer, event)
            time.sleep(YIELD)

    def submit(self, answer: Answer) -> None:
        question = answer.question
        try:
            served = self.shelf.find(question.adapter)
            request = Request(
                question.ids, question.max_new_tokens, self.ends(served.template), 1,
                question.sampling, question.seed, None, served.entry, logprobs=question.logprobs,
            )  # fmt: skip
            answer.number = self.engine.submit(request)
        except (Refused, UserError) as error:
            self.end(answer, Piece(error=str(error)))
            return
        answer.served = served
        served.running += 1
        self.answers[answer.number] = answer

    def ends(self, template: Template) -> list[int]:
        """The ids that end an answer."""
        turn = turn_end(self.tokenizer, template.text) if template.chat else None
        return sorted({*stop_ids(self.tokenizer), turn} - {None})

    def hand_out(self, answer: Answer, event: Event) -> None:
        """Deliver the text of an answer's new tokens."""
        piece, now = answer.piece(event), time.monotonic()
        self.metrics.token(now - answer.last, is_first=answer.tokens == len(event.tokens))
        answer.last = now
        if piece.ended:
            self.engine.cancel(event.number)  # a stop string may have ended it
            self.end(answer, piece)
        else:
            answer.deliver(piece)

    def withdraw(self, answer: Answer) -> None:
        if not answer.is_over:
            if answer.number is not None:
                self.engine.cancel(answer.number)
            self.end(answer, Piece(ended="cancelled"))

    def end(self, answer: Answer, piece: Piece) -> None:
        answer.is_over = True
        if self.answers.pop(answer.number, None):
            answer.served.running -= 1
            if not answer.served.running and self.shelf.leaving:
                self.shelf.tidy()
                self.engine.reseat([])
        with self.lock:
            self.count -= 1
        answer.deliver(piece)

    def fail(self, error: Exception) -> None:
        """A pass has failed: all answers on their way end with the error; a new engine begins."""
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"a pass failed: {message}"[:1000], file=sys.stderr)
        answers = list(self.answers.values())
        self.engine = Engine(self.model, self.slots, self.length, self.tokenizer.size)
        for answer in answers:
            self.end(answer, Piece(error=message))
