"""Answers as they come, in a file beside the results, so that an evaluation that was interrupted goes on where it stopped."""

import hashlib
import json
from pathlib import Path

from torch import nn

from adapters.attach import in_order, in_use
from adapters.compose import Composition
from files.errors import UserError
from files.writing import JsonLines, make_folder


class Journal(JsonLines):
    """A line an answer: {"job": its number, ...}; the first line says of what. `done`: the answers that are there already, by number.

    Raises UserError when the file holds answers to other questions, of other weights or made in another way.
    """

    def __init__(self, path: Path, fingerprint: str):
        super().__init__(path)
        self.fingerprint = fingerprint
        lines = (
            path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        )
        self.entries = [entry for line in lines if (entry := parsed(line)) is not None]
        if self.entries and self.entries[0].get("fingerprint") != fingerprint:
            raise UserError(
                f"{path} holds answers to other problems, of other weights or made in another way: remove it, or give another folder"
            )
        self.done = {entry["job"]: entry for entry in self.entries[1:] if is_answer(entry)}

    def __enter__(self):
        make_folder(self.path.parent)
        super().__enter__()
        if not self.entries:
            self.write({"fingerprint": self.fingerprint})
        return self


def journal_of(path: Path, rank: int) -> Path:
    """The file of one of several processes, beside that of the first."""
    return path.with_name(f"{path.name}{rank}") if rank else path


def journals(path: Path) -> list[Path]:
    """Those that are there, of however many processes there were."""
    return [
        file
        for file in sorted(path.parent.glob(f"{path.name}*"))
        if file == path or file.name.removeprefix(path.name).isdigit()
    ]


def answers_in(path: Path, fingerprint: str) -> dict[int, dict]:
    """The answers in all of them, by number. Raises UserError."""
    return {
        number: answer
        for file in journals(path)
        for number, answer in Journal(file, fingerprint).done.items()
    }


def remove_journals(path: Path) -> None:
    for file in journals(path):
        file.unlink()


def parsed(line: str) -> dict | None:
    """The entry of a line; None for the one that a kill cut short."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def is_answer(entry: dict) -> bool:
    """Whether an entry is what `eval/score.py` writes; others are made again."""
    likelihoods = entry.get("likelihoods", {})
    numbers = isinstance(likelihoods, dict) and all(
        isinstance(value, float) for value in likelihoods.values()
    )
    return (
        type(entry.get("job")) is int
        and isinstance(entry.get("output"), str)
        and numbers
        and isinstance(entry.get("cut", False), bool)
    )


def fingerprint_of(model: nn.Module, *more) -> str:
    """A hash of the base, of the adapters that are on with all their weights and how they are composed, and of what else counts."""
    digest = hashlib.sha256(f"{model.fingerprint} {model.dtype}{model.quantize}".encode())
    digest.update(
        json.dumps(
            [
                entry.table() if isinstance(entry, Composition) else entry
                for entry in in_order(model)
            ]
        ).encode()
    )
    for path, _, adapter in in_use(model):
        for leaf, tensor in adapter.state_dict().items():
            digest.update(f"{path} {leaf}".encode() + tensor.float().cpu().numpy().tobytes())
    digest.update(json.dumps(more).encode())
    return digest.hexdigest()
