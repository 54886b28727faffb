"""Files from the network: verified, gone on with, whole or not at all; against servers on this
machine.
"""

import hashlib
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import processes
import pytest

from data.fetch import CACHE, MIRROR, SUMS, File, cache_folder, fetch, known_sums
from model import UserError

ROOT = Path(__file__).parent.parent
BODY = bytes(range(256)) * 4000  # about 1 MB, the same at no two offsets nearby


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Server:
    """One file on this machine. manner: how it answers; asked: (path, the Range header) of each
    request.
    """

    def __init__(self, body: bytes = BODY):
        self.body, self.manner, self.asked = body, "ranges", []
        self.sent, self.killed = (
            threading.Event(),
            threading.Event(),
        )  # the slow manner has sent its first half; it may go

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        body, headers, status = self.body, {}, 200
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if wanted and self.manner != "no ranges"
            else 0
        )
        if self.manner == "missing":
            status, body = 404, b"no"
        elif start >= len(body):
            status, headers, body = (
                416,
                {"Content-Range": f"bytes */{len(body)}"} if self.manner != "bare 416" else {},
                b"",
            )
        elif start:
            at = 7 if self.manner == "another part" else start
            status, headers, body = (
                206,
                {"Content-Range": f"bytes {at}-{len(body) - 1}/{len(body)}"},
                body[at:],
            )
        handler.send_response(status)
        if self.manner != "no length":
            headers["Content-Length"] = str(len(body))
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        half = len(body) // 2
        if self.manner == "breaks off":
            handler.wfile.write(body[:half])
        elif self.manner == "slow":
            handler.wfile.write(body[:half])
            handler.wfile.flush()
            self.sent.set()
            self.killed.wait(900)
        else:
            if self.manner == "a while":
                time.sleep(0.5)
            handler.wfile.write(body)


@pytest.fixture
def server():
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            made.answer(self)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads, web.block_on_close = True, False
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    made.address = f"http://127.0.0.1:{web.server_port}"
    yield made
    web.shutdown()
    web.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(MIRROR)


def pinned(server: Server, body: bytes = BODY) -> File:
    return File("dataset/set/test.json", f"{server.address}/far/test.json", sha(body))


def unpinned(server: Server) -> File:
    return File("dataset/set/test.json", f"{server.address}/far/test.json")


def kept() -> dict[str, bytes]:
    """What the cache holds."""
    folder = cache_folder()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def part(body: bytes) -> None:
    """As if a download had been broken off."""
    path = cache_folder() / "dataset/set/test.json.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def failure(file: File) -> str:
    with pytest.raises(UserError) as error:
        fetch([file])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_comes_once_and_is_verified(server):
    (path,) = fetch([pinned(server)])
    assert path == cache_folder() / "dataset/set/test.json"
    assert kept() == {"dataset/set/test.json": BODY}
    assert fetch([pinned(server)]) == [path]
    assert server.asked == [("/far/test.json", None)]


def test_wrong_content_is_not_kept(server):
    server.body = BODY[:-1] + b"!"
    said = failure(pinned(server))
    assert "not the file it should be" in said
    assert "nothing was kept" in said
    assert kept() == {}


def test_a_file_that_is_there_needs_no_network():
    file = File("a.json", "http://127.0.0.1:9/a.json", "0" * 64)
    cache_folder().mkdir()
    (cache_folder() / "a.json").write_text("[]")
    assert fetch([file]) == [cache_folder() / "a.json"]


# ---------------------------------------------------------------- going on
def test_it_goes_on_where_it_stopped(server):
    part(BODY[:1000])
    fetch([pinned(server)])
    assert server.asked == [("/far/test.json", "bytes=1000-")]
    assert kept() == {"dataset/set/test.json": BODY}


@pytest.mark.parametrize("manner", ["no ranges", "another part"])
def test_a_server_that_sends_something_else_than_the_range(server, manner):
    part(BODY[:1000])
    server.manner = manner
    if manner == "another part":  # from byte 7 on: neither what is missing nor the whole
        assert "another part than was asked for" in failure(pinned(server))
    fetch([pinned(server)])
    assert kept() == {"dataset/set/test.json": BODY}


def test_a_part_that_is_the_whole(server):
    part(BODY)
    fetch([pinned(server)])
    assert server.asked == [
        ("/far/test.json", f"bytes={len(BODY)}-")
    ]  # answered with 416: nothing is after it
    assert kept() == {"dataset/set/test.json": BODY}


@pytest.mark.parametrize("manner", ["ranges", "bare 416"])
def test_a_part_longer_than_the_file_is_given_up(server, manner):
    part(BODY + b"more")
    server.manner = manner
    fetch([pinned(server)])
    assert [wanted for _, wanted in server.asked] == [f"bytes={len(BODY) + 4}-", None]
    assert kept()["dataset/set/test.json"] == BODY


def test_a_part_of_a_file_without_a_known_sum_is_fetched_anew(server):
    part(BODY[:10])  # of another version, perhaps
    server.manner = "ranges"
    fetch([unpinned(server)])
    assert [wanted for _, wanted in server.asked] == [None]
    assert kept()["dataset/set/test.json"] == BODY


def test_an_endless_file_is_given_up(server, monkeypatch):
    monkeypatch.setattr("data.fetch.LARGEST", len(BODY) - 1)
    assert f"sends more than {len(BODY) - 1:,} bytes" in failure(pinned(server))
    assert kept() == {}


def test_the_password_of_a_mirror_is_not_shown(server, monkeypatch):
    url = pinned(server).url.replace("://", "://me:secret@")
    monkeypatch.setenv("LLM_ADAPTERS_MIRROR", url)
    message = failure(pinned(server))
    assert "secret" not in message
    assert "//***@" in message


def test_a_part_of_another_file_is_not_kept(server):
    part(b"x" * 1000)
    assert "nothing was kept" in failure(pinned(server))
    assert kept() == {}
    fetch([pinned(server)])


def test_broken_off_then_completed(server):
    server.manner = "breaks off"
    assert f"broke off after {len(BODY) // 2:,} of {len(BODY):,} bytes: try again" in failure(
        pinned(server)
    )
    assert kept() == {"dataset/set/test.json.part": BODY[: len(BODY) // 2]}
    server.manner = "ranges"
    fetch([pinned(server)])
    assert server.asked[-1] == ("/far/test.json", f"bytes={len(BODY) // 2}-")
    assert kept() == {"dataset/set/test.json": BODY}


def process(code: str) -> processes.Started:
    return processes.start("-c", f"from data.fetch import File, fetch\n{code}")


def test_killed_in_the_middle_then_completed(server):
    server.manner = "slow"
    server.body = BODY * 8  # more than the buffers between the two hold
    running = process(f"fetch([{pinned(server)!r}])")
    assert server.sent.wait(300)
    path = cache_folder() / "dataset/set/test.json.part"
    while not (path.is_file() and path.stat().st_size):
        assert running.returncode is None, running.communicate()
        time.sleep(0.02)
    running.kill()
    running.communicate()
    server.killed.set()
    there = path.stat().st_size
    assert 0 < there < len(server.body)
    assert server.body.startswith(path.read_bytes())
    server.manner = "ranges"
    fetch([pinned(server, server.body)])
    assert server.asked[-1][1] == f"bytes={there}-"
    assert kept() == {"dataset/set/test.json": server.body}


def test_two_processes_fetch_one_intact_copy(server):
    server.manner = "a while"
    codes = [f"print(fetch([{unpinned(server)!r}])[0])", f"print(fetch([{unpinned(server)!r}])[0])"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda code: process(code).communicate(), codes))
    assert {out.strip() for out, _ in done} == {str(cache_folder() / "dataset/set/test.json")}, done
    assert len(server.asked) == 1  # the second has waited
    assert kept()["dataset/set/test.json"] == BODY
    assert known_sums(cache_folder()) == {"dataset/set/test.json": sha(BODY)}


def test_processes_that_fetch_different_files_remember_both_sums(server):
    files = [File(f"{name}.json", f"{server.address}/{name}.json") for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda file: process(f"fetch([{file!r}])").communicate(), files))
    assert not any("Traceback" in error for _, error in done), done
    assert set(known_sums(cache_folder())) == {file.path for file in files}


# ---------------------------------------------------------------- without a sum of ours
def test_what_came_first_is_remembered(server):
    (path,) = fetch([unpinned(server)])
    assert known_sums(cache_folder()) == {"dataset/set/test.json": sha(BODY)}
    path.unlink()
    fetch([unpinned(server)])  # the same again
    path.unlink()
    server.body = b"[]"
    assert "not the file it should be" in failure(unpinned(server))
    assert set(kept()) == {SUMS}
    (cache_folder() / SUMS).write_text("{broken")  # forgotten, not an error
    fetch([unpinned(server)])


def test_without_a_sum_and_a_length_nobody_knows_whether_it_is_whole(server):
    server.manner = "no length"
    assert "comes without its length" in failure(unpinned(server))
    assert kept() == {}
    fetch([pinned(server)])  # the sum tells


# ---------------------------------------------------------------- one line for what goes wrong
def test_offline_says_what_to_do():
    said = failure(File("dataset/set/test.json", "http://127.0.0.1:9/far/test.json"))
    for part_ in (
        "http://127.0.0.1:9/far/test.json",
        "refused",
        "try again",
        MIRROR,
        "--data-dir FOLDER",
        "dataset/set/test.json",
    ):
        assert part_ in said
    assert kept() == {}


def test_a_file_that_is_not_there(server):
    server.manner = "missing"
    said = failure(pinned(server))
    assert "status 404" in said
    assert "try again" not in said  # that would not help
    assert kept() == {}


@pytest.mark.parametrize(
    "address", ["nonsense", "http://[", "http://127.0.0.1:port", "http://a b", "ftp://127.0.0.1:9"]
)
def test_a_mirror_that_is_no_address(monkeypatch, address):
    monkeypatch.setenv(MIRROR, address)
    assert "cannot be fetched" in failure(File("a.json", "http://127.0.0.1:9/a.json"))


def test_a_server_that_speaks_no_http(server, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk():
            for _ in range(2):
                client = plain.accept()[0]
                client.recv(1000)
                client.sendall(b"SSH-2.0-OpenSSH\r\n")
                client.close()

        threading.Thread(target=talk, daemon=True).start()
        assert "cannot be fetched" in failure(
            File("a.json", f"http://127.0.0.1:{plain.getsockname()[1]}/a.json")
        )


def test_the_mirror_holds_the_same_paths(server, monkeypatch):
    monkeypatch.setenv(MIRROR, f"{server.address}/copy/")
    fetch([File("dataset/set/test.json", "http://127.0.0.1:9/elsewhere.json", sha(BODY))])
    assert server.asked == [("/copy/dataset/set/test.json", None)]


def test_a_folder_as_mirror(tmp_path, monkeypatch):
    (tmp_path / "copy" / "dataset").mkdir(parents=True)
    (tmp_path / "copy" / "dataset" / "a.json").write_bytes(BODY)
    monkeypatch.setenv(MIRROR, f"file://{tmp_path / 'copy'}")
    fetch([File("dataset/a.json", "http://127.0.0.1:9/a.json")])
    assert kept()["dataset/a.json"] == BODY


def test_a_disk_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))  # below a file
    assert "cannot make the folder" in failure(pinned(server))
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "cache" / "dataset" / "set" / "test.json.part").mkdir(
        parents=True
    )  # stands for a folder without permission: root may write anywhere
    said = failure(pinned(server))
    assert "cannot write" in said
    assert CACHE in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(server, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "cannot make the folder" in failure(pinned(server))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(server):
    folder = cache_folder() / "dataset" / "set"
    folder.mkdir(parents=True)
    (folder / "test.json.part").symlink_to("/dev/full")
    said = failure(pinned(server))
    assert "No space left" in said
    assert "try again" not in said


def test_the_cache_is_in_the_users_folder(monkeypatch):
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/llm-adapters")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "llm-adapters"
