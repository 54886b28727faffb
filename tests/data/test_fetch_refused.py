"""What cannot be fetched or kept: one line for each."""

import os
import threading
from pathlib import Path

import pytest
from file_server import BODY, failure, kept, own_cache, pinned, server, sha, unpinned  # noqa: F401

from data.fetch import CACHE, MIRROR, File, cache_folder, fetch


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
