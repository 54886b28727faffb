"""Files from the network: verified, gone on with, whole or not at all; against servers on this
machine.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import processes
import pytest
from file_server import BODY, failure, kept, own_cache, part, pinned, server, sha, unpinned  # noqa: F401

from data.fetch import SUMS, File, cache_folder, fetch, known_sums


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


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, monkeypatch):
    """No wait for a single byte is longer than the timeout of the socket."""
    monkeypatch.setattr("data.fetch.TIMEOUT", 0.3)
    server.manner = "drips"
    assert "cannot be fetched (not done after 0.3 s): try again" in failure(pinned(server))
    server.killed.set()


def test_a_length_of_more_digits_than_python_reads(server):
    server.manner = "digits"
    assert "comes without its length" in failure(unpinned(server))
    fetch([pinned(server)])


def test_a_file_that_takes_hours_is_gone_on_with(server, monkeypatch):
    monkeypatch.setattr("data.fetch.LONGEST", 0)
    assert "has sent 65,536 bytes in 0 s: try again" in failure(pinned(server))
    monkeypatch.setattr("data.fetch.LONGEST", 3600)
    fetch([pinned(server)])
    assert server.asked[-1] == ("/far/test.json", "bytes=65536-")


def test_the_password_of_a_mirror_is_not_shown(server, monkeypatch):
    for mirror in (
        "http://me:secret@HOST/far",
        "http://me:a@secret@HOST",
        "http://me:secret/@HOST",
        "http://me:secret@",
        "me:secret@HOST/far",
        "http://127.0.0.1:9/far?token=secret",
        "http://me:x/secret@HOST",
        "http://secret@[HOST/",
    ):
        monkeypatch.setenv("LLM_ADAPTERS_MIRROR", mirror.replace("HOST", server.address[7:]))
        message = failure(pinned(server))
        assert "secret" not in message
        assert "***" in message


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
