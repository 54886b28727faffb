"""Data sets from a mirror: what comes, what is refused, what is here."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from paper_folder import write_paper_folder

from data import sources
from data.fetch import CACHE, MIRROR, File, cache_folder
from data.sources import SOURCES, is_here, load_data
from data.split import MATH_SETS
from model import UserError


def rows(count: int, answer=str, **more) -> list[dict]:
    return [
        {"instruction": f"question {i}", "output": f"It is {i}.", "answer": answer(i)} | more
        for i in range(count)
    ]


def write(path: Path, content: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


# ---------------------------------------------------------------- from the network
@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with a folder like the paper's, whose sums are pinned; the paths that were asked
    for.
    """
    folder, asked = write_paper_folder(tmp_path / "far"), []
    write(folder / "dataset" / "boolq" / "test.json", rows(4, lambda i: "true"))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{web.server_port}")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    changed = {}
    for name, source in SOURCES.items():
        there = [(file, folder / file.path) for file in source.files]
        if all(path.is_file() for _, path in there):
            files = tuple(
                File(file.path, file.url, hashlib.sha256(path.read_bytes()).hexdigest())
                for file, path in there
            )
            changed[name] = sources.replace(source, files=files)
    monkeypatch.setattr(sources, "SOURCES", SOURCES | changed)
    yield folder, asked
    web.shutdown()
    web.server_close()


def test_math_v1_from_a_mirror(mirror):
    folder, asked = mirror
    assert not is_here("math-v1")
    data = load_data("math-v1")
    assert len(asked) == 7  # six sets, and the labels of AddSub
    assert data == load_data("math-v1", str(folder))
    assert is_here("math-v1")
    assert is_here("AddSub")
    assert not is_here("boolq")
    assert len(load_data("boolq").tests["boolq"]) == 4
    asked.clear()
    assert load_data("Math-V1") == data
    assert asked == []  # what is there needs no network


def test_a_changed_file_is_refused_and_the_others_stay(mirror):
    folder, _ = mirror
    changed = folder / "dataset" / MATH_SETS["SVAMP"]
    changed.write_text(changed.read_text() + " ")
    with pytest.raises(UserError, match="is not the file it should be") as error:
        load_data("math-v1")
    assert "\n" not in str(error.value)
    assert not is_here("SVAMP")
    assert is_here("gsm8k")


def test_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    assert is_here("wordproblems")
    assert not is_here("math-v1")
    assert not is_here("alpaca")
    assert is_here("math-v1", str(write_paper_folder(tmp_path / "mine")))
    assert not is_here("math_10k", str(tmp_path / "mine"))
    assert is_here(write(tmp_path / "a.json", rows(2)))
    assert not is_here(str(tmp_path / "b.json"))
    assert not cache_folder().exists()  # asking makes nothing
