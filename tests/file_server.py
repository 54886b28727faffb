"""A server of files that breaks off, lies and stalls as told, and files pinned on it."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.fetch import CACHE, MIRROR, File, cache_folder, fetch
from model import UserError

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
            headers["Content-Length"] = "9" * 5000 if self.manner == "digits" else str(len(body))
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
        elif self.manner == "drips":
            for byte in body[:400]:
                if self.killed.wait(0.02):
                    break
                handler.wfile.write(bytes([byte]))
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
