"""The chat in the terminal: what is typed, what comes on stdout, what is told beside it."""

import io
import json

import pytest
from in_command import main
from serve_parts import BASE, PROBLEM, adapters  # noqa: F401 - a fixture

from cli import chat as command
from data.rows import read_table
from files.errors import UserError
from files.terminal import protect_terminal
from serve.chat import Conversation, side_by_side, toy_notes
from serve.loop import Loop


@pytest.fixture
def say(monkeypatch, capsys, adapters):
    """Lines -> (stdout, stderr) of the command that reads them."""

    def say(*lines: str, status: int = 0, words=("--adapter", f"lora={adapters / 'lora'}")):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", "--model", BASE, *map(str, words)]) == status
        return capsys.readouterr()

    return say


def test_answers_alone_go_to_the_pipe(say, tmp_path):
    base = say(PROBLEM, words=())
    assert base.out == "Fred has 26 - 7 = 19 toys. The answer is 19.\n"
    assert base.err.startswith(f"{BASE} answers")
    assert "is a toy" in base.err
    assert base.err.count("\n  ") == 3
    found = say(PROBLEM, "/base", PROBLEM, "/adapter", "/save", f"/save {tmp_path}/said.jsonl",
                f"/save {tmp_path}/none/said.jsonl", "", "/reset", "/compare", "/nothing",
                "/adapter x", "/quit", PROBLEM, status=1)  # fmt: skip
    own, other, listed = found.out.splitlines()
    assert (own != other, listed) == (True, "lora")
    for told in ("/save FILE", "none/said.jsonl: No such file or directory\n", "written:",
                 "no earlier question", "/nothing is no command",
                 "no adapter 'x': choose from pocket-llama, lora"):  # fmt: skip
        assert told in found.err
    (line,) = (tmp_path / "said.jsonl").read_text().splitlines()
    turns = json.loads(line)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in turns[1::2]] == [own, other]
    assert read_table(tmp_path / "said.jsonl")  # as data to train on


def test_what_the_model_is_told_and_remembers(say):
    """`/system` and earlier turns are part of the prompt, until `/reset`."""
    asked, prompt = [], Loop.prompt

    def watch(loop, name, messages):
        asked.append([message["content"] for message in messages])
        return prompt(loop, name, messages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "prompt", watch)
        words = ("--system", "Be kind.", "--max-new-tokens", 3)
        found = say("Hi", "Go on", "/system", "/reset", "Hi", "/help", words=words)
    first, second, *_ = found.out.splitlines()
    assert asked == [["Be kind.", "Hi"], ["Be kind.", "Hi", first, "Go on"], ["Hi"]]
    assert second
    assert command.HELP in found.out


def test_both_answers_side_by_side(say, monkeypatch, adapters):
    monkeypatch.setenv("COLUMNS", "83")
    words = ("--adapter", f"lora={adapters / 'lora'}", "--max-new-tokens", 20)
    found = say(PROBLEM, "/compare", words=words).out.splitlines()
    own = found[0]
    table = found[1:]
    assert table[0].split() == [BASE, "lora"]
    assert len(table[1]) == 83
    columns = [
        " ".join(part.split())
        for part in (
            " ".join(row[:40] for row in table[2:4]),
            " ".join(row[43:] for row in table[2:4]),
        )
    ]
    assert columns[0].startswith("Fred has 26 - 7 = 19 toys.")
    assert own.strip().startswith(columns[1][:30].strip())
    assert side_by_side({"a": "x y", "b": "z"}, 40) == "a> x y\n\nb> z"
    assert "\x1b" not in side_by_side({"a": "\x1b[2J", "b": "z\tz"}, 80)


class Interrupted:
    """Pieces whose third is Ctrl-C."""

    def __init__(self, pieces):
        self.pieces, self.count = pieces, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        if self.count == 3:
            raise KeyboardInterrupt
        return next(self.pieces)

    def close(self):
        self.pieces.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(say, monkeypatch):
    pieces, loops, times = Loop.pieces, [], iter([True])

    def interrupted(loop, question):
        loops.append(loop)
        found = pieces(loop, question)
        return Interrupted(found) if next(times, False) else found

    monkeypatch.setattr(Loop, "pieces", interrupted)
    found = say(PROBLEM, "/reset", PROBLEM, words=())
    assert found.out.endswith("Fred has 26 - 7 = 19 toys. The answer is 19.\n")
    assert "stopped" in found.err
    assert loops[0].count == 0  # its slot is free


def test_ctrl_c_at_the_prompt_and_control_characters(monkeypatch, capsys):
    """On a terminal: input() reads, the end is Ctrl-D, an answer cannot steer the terminal."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Talk:
        name, adapter, turns = "x", "", []

        def ask(self, text):
            yield from ("\x1b[2J", "ok")

    lines = iter([KeyboardInterrupt(), "hi", EOFError()])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    out = Terminal()
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", out)
    protect_terminal()
    command.talk(Talk())
    assert out.getvalue() == "\\x1b[2Jok\n\n"
    assert "Ctrl-D" in capsys.readouterr().err


def test_a_conversation_that_is_too_long_says_so():
    class Full:
        shelf = type("Shelf", (), {"named": {}})

        def prompt(self, name, messages):
            return [5] * 300

        def room(self, question):
            return 256 - len(question.ids)

    chat = Conversation(Full(), BASE)
    with pytest.raises(UserError, match=r"300 tokens leave no room .* reads 256: /reset"):
        next(chat.ask("x"))
    assert chat.turns == []
    assert toy_notes("llama-7b") == []
