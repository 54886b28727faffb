"""The answers of an evaluation in a file as they come, so that it resumes where it stopped."""

import hashlib
import json
from pathlib import Path

from adapters.attach import in_order
from adapters.compose import Composition
from adapters.in_use import in_use
from eval.score import are_likelihoods
from files.errors import UserError
from files.reading import json_lines
from files.writing import JsonLines, make_folder
from model.language import LanguageModel


class Journal(JsonLines):
    """A line an answer, {"job": its number, ...}; the first line has the fingerprint.

    `done`: the answers already there, by number. Raises UserError when they are to other problems,
    of other weights, or decoded in another way.
    """

    def __init__(self, path: Path, fingerprint: str):
        super().__init__(path)
        self.fingerprint = fingerprint
        self.entries = json_lines(path)
        if self.entries and self.entries[0].get("fingerprint") != fingerprint:
            raise UserError(
                f"{path} holds answers to other problems, of other weights or made in another way: "
                "remove it, or give another folder"
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
    """The files that exist, of however many processes there were."""
    files = sorted(path.parent.glob(f"{path.name}*"))
    return [file for file in files if file == path or file.name[len(path.name) :].isdigit()]


def answers_in(path: Path, fingerprint: str) -> dict[int, dict]:
    """The answers in all of them, by number. Raises UserError."""
    found: dict[int, dict] = {}
    for file in journals(path):
        found |= Journal(file, fingerprint).done
    return found


def remove_journals(path: Path) -> None:
    for file in journals(path):
        file.unlink()


def is_answer(entry: dict) -> bool:
    """Whether an entry is what `predict` writes; other answers are made again."""
    return (
        type(entry.get("job")) is int
        and isinstance(entry.get("output"), str)
        and are_likelihoods(entry.get("likelihoods", {}))
        and isinstance(entry.get("cut", False), bool)
    )


def fingerprint_of(model: LanguageModel, *more) -> str:
    """A hash of the base, of the active adapters' weights and composition, and of `more` (JSON)."""
    digest = hashlib.sha256(f"{model.fingerprint} {model.dtype}{model.quantize}".encode())
    active = [e.table() if isinstance(e, Composition) else e for e in in_order(model)]
    digest.update(json.dumps(active).encode())
    for path, _, adapter in in_use(model):
        for leaf, tensor in adapter.state_dict().items():
            digest.update(f"{path} {leaf}".encode() + tensor.float().cpu().numpy().tobytes())
    digest.update(json.dumps(more).encode())
    return digest.hexdigest()
