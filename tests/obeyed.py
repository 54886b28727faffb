"""Rows of a table: each proves that one setting or option, or several, do what their values say."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from conftest import write_sums
from in_command import command

from model.language import LanguageModel


class Rows(dict):
    """A name -> (the function that proves it, the name that the function is called with)."""

    def row(self, *names: str, each: bool = False):
        """A row for these names: one proof of all of them, or one for `each`."""

        def note(prove):
            for name in names:
                assert name not in self, f"{name} has two rows"
                self[name] = (prove, name if each else names[0])
            return prove

        return note

    def cases(self) -> list[str]:
        return [name for name, (_, called) in self.items() if name == called]

    def prove(self, name: str, here: "Here") -> None:
        prove, _ = self[name]
        prove(here)


class Here:
    """What a row needs: folders, a short run, and the fixtures of this suite."""

    def __init__(self, path, monkeypatch, request, name):
        self.path, self.monkeypatch, self.request, self.name = path, monkeypatch, request, name
        self.sums = write_sums(path / "sums.json")

    @property
    def tiny(self) -> Path:
        """The tiny random LLaMA of this suite."""
        return self.request.getfixturevalue("folder")

    def copy_of(self, folder: Path) -> Path:
        shutil.copytree(folder, self.path / "copy", dirs_exist_ok=True)
        return self.path / "copy"

    def train(self, *words, data=None, out="run", steps=1, status=0) -> Path:
        """A run of a step or so on the pocket model, in this process; the folder of its results."""
        short = ["--max-steps", steps] * (steps is not None)
        quick = "--set eval.before=false --set eval.max_new_tokens=2 --set adapter.size=4".split()
        quick = quick if not {"--continue", "--adapter"} & set(map(str, words)) else quick[:-2]
        quick += "--items 1 --set train.batch_size=4 --set train.warmup_steps=0".split()
        self.told = command(
            "train", "--data", data or self.sums, *quick, *short, "--out", self.path / out, *words,
            status=status,
        )  # fmt: skip
        return self.path / out

    def still(self, *words, **more) -> Path:
        """A run that leaves the weights as they start: 1e-30 is as good as nothing."""
        return self.train("--set", "train.learning_rate=1e-30", *words, **more)

    def evaluate(self, *words, data=None, out="e", status=0) -> list[dict]:
        """The predictions of the pocket model on two problems, two tokens each."""
        self.told = command(
            "evaluate", "--data", data or self.sums, "--items", 2, "--max-new-tokens", 2,
            "--out", self.path / out, *words, status=status,
        )  # fmt: skip
        return [] if status else lines_of(self.path / out / "predictions.jsonl")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in lines_of(folder / "log.jsonl")]


def rows_of(path: Path) -> list[dict]:
    return [{"input": "", **one} for one in json.loads(path.read_text())]


class Seen(list):
    def __init__(self):
        super().__init__()
        self.checkpointing = []


@contextmanager
def watched(monkeypatch):
    """The model and the shape of ids of every forward pass, and its `checkpointing` then."""
    seen, hidden = Seen(), LanguageModel.hidden

    def watch(self, ids, *arguments, **more):
        seen.append((self, tuple(ids.shape)))
        seen.checkpointing.append(self.checkpointing)
        return hidden(self, ids, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "hidden", watch)
        yield seen
