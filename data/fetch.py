"""Download data files into the user's cache: verified, resumable, each file whole or absent."""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from files.bounded import clock
from files.errors import UserError
from files.progress import progress_bar
from files.writing import lock, make_folder, write_text

MIRROR = "LLM_ADAPTERS_MIRROR"  # base URL of a copy, for machines that reach no other server
CACHE = "LLM_ADAPTERS_CACHE"
ELSEWHERE = f"{CACHE} names another folder to keep data in, or give --data-dir FOLDER, where it is"
SUMS = "sha256.json"  # sums of unpinned files, as they were when they were first downloaded
PIECE = 1 << 16  # bytes
LARGEST = 500_000_000  # bytes; the largest data set has a fifth of it
TIMEOUT = 15  # seconds for an answer to begin, and for each piece of it
LONGEST = 3600  # seconds for a file; what came is kept
AGENT = {"User-Agent": "llm-adapters"}


@dataclass(frozen=True)
class File:
    """A file to download: its path below the data folder, its URL, its sha256 ("": not pinned)."""

    path: str
    url: str
    sha256: str = ""


def cache_folder() -> Path:
    """Where data is kept: $LLM_ADAPTERS_CACHE, else llm-adapters in the user's cache folder.

    Raises UserError for a user without a home folder.
    """
    if cache := os.environ.get(CACHE):
        return Path(cache)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise UserError(f"this user has no home folder to keep data in: {ELSEWHERE}") from None
    return Path(cache) / "llm-adapters"


def fetch(files: list[File]) -> list[Path]:
    """Download the files that are missing; returns the paths of all. Raises UserError."""
    folder = cache_folder()
    paths = [folder / file.path for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.is_file():
            download(file, folder)
    return paths


def download(file: File, folder: Path) -> None:
    """Download one file, continuing an earlier attempt. A second process waits for the first."""
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    try:
        make_folder(target.parent)
    except UserError as error:
        raise UserError(f"{error}; {ELSEWHERE}") from None
    with locked(folder):
        if target.is_file():  # another process downloaded it
            return
        try:
            receive(file, part)
            sha256 = sum_of(part)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {part}: {reason}; {ELSEWHERE}") from None
        finally:
            if part.is_file() and not part.stat().st_size:
                part.unlink()
        sums = known_sums(folder)
        expected = file.sha256 or sums.get(file.path, sha256)
        if sha256 != expected:
            part.unlink()
            raise UserError(
                f"{address(file)} is not the file it should be: its sha256 is {sha256[:16]}..., "
                f"not {expected[:16]}...; nothing was kept"
            )
        if not file.sha256 and file.path not in sums:
            write_text(folder / SUMS, json.dumps(sums | {file.path: sha256}, indent=2) + "\n")
        os.replace(part, target)


def receive(file: File, part: Path) -> None:
    """Append the missing bytes to `part`; of a file without a known sha256, all of them anew, as
    the server may have another version by now.

    Raises UserError for network errors, OSError where the disk cannot be written.
    """
    with open(part, "ab") as out:
        if not file.sha256:
            out.truncate(0)
        have = os.fstat(out.fileno()).st_size
        answer = ask(file, have)
        if answer is None:  # nothing is missing
            return
        with answer:
            content_range = answer.headers.get("Content-Range") or ""
            match = re.match(r"bytes (\d{1,15})-", content_range) if answer.status == 206 else None
            start = int(match[1]) if match else 0
            if have and start != have:  # the server sends the whole file
                out.truncate(0)
                have = 0
                if start:
                    raise UserError(
                        f"{address(file)} sends another part than was asked for: try again, "
                        "the download starts from the beginning"
                    )
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length and re.fullmatch(r"\d{1,15}", length) else None
            if total is None and not file.sha256 and not getattr(answer, "chunked", False):
                raise UserError(
                    f"{address(file)} comes without its length and has no known sha256: "
                    "a complete file cannot be told from a partial one"
                )
            with progress_bar(total, have, unit="B", unit_scale=True, desc=part.stem) as bar:
                until = time.monotonic() + LONGEST
                while piece := network(file, lambda: answer.read(PIECE)):
                    out.write(piece)
                    bar.update(len(piece))
                    if time.monotonic() > until:
                        raise UserError(
                            f"{address(file)} has sent {out.tell():,} bytes in {LONGEST:,} s: try "
                            "again, it goes on from there where its sha256 is known"
                        )
                    if out.tell() > LARGEST:
                        out.truncate(0)
                        raise UserError(
                            f"{address(file)} sends more than {LARGEST:,} bytes, and no data set "
                            "here has as many: nothing was kept"
                        )
            out.flush()
            os.fsync(out.fileno())
            if total is not None and out.tell() != total:
                raise UserError(
                    f"{address(file)} broke off after {out.tell():,} of {total:,} bytes: "
                    "try again, it goes on from there"
                )


def ask(file: File, have: int):
    """The server's response to a request for the bytes from `have` on; None if there are none."""

    def request(headers: dict[str, str]):
        return urlopen(Request(url_of(file), headers=AGENT | headers), timeout=TIMEOUT)

    def response():
        try:
            return request({"Range": f"bytes={have}-"} if have else {})
        except HTTPError as error:
            if not have or error.code != 416:  # range not satisfiable
                raise
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            return None if whole == str(have) else request({})

    return network(file, response)


def network(file: File, step: Callable):
    """The result of step(), which uses the network. Raises UserError."""
    try:
        with clock(TIMEOUT):
            return step()
    except (HTTPException, OSError, ValueError) as error:
        status = error.code if isinstance(error, HTTPError) else 0
        reason = f"status {status}" if status else getattr(error, "reason", None) or error
        reason = " ".join(str(reason).split()) or type(error).__name__
        reason = re.sub(r"[^/@\s]*@|(?<=nonnumeric port: ).*", "***", reason)  # of a password
        again = "" if 400 <= status < 500 else "try again (it goes on from where it stopped), "
        raise UserError(
            f"{address(file)} cannot be fetched ({reason:.200}): {again}set {MIRROR} to a copy, "
            f"or give --data-dir FOLDER, where {file.path} is"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder within this block; wait for another process that holds the lock."""
    try:
        handle = open(folder / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; {ELSEWHERE}") from None
    with handle:
        if not lock(handle.fileno()):
            print(f"another process fetches into {folder}: waiting for it", file=sys.stderr)
            lock(handle.fileno(), wait=True)
        yield


def url_of(file: File) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{file.path}" if mirror else file.url


def address(file: File) -> str:
    """The URL of a file for messages, without a password and what a query may hold."""
    mirror = os.environ.get(MIRROR, "")
    masked = re.sub(r"\?.*", "?***", re.sub(r"^(\w+://)?.*@", r"\1***@", mirror))
    return url_of(file).replace(mirror.rstrip("/"), masked.rstrip("/"), 1)


def sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sums(folder: Path) -> dict[str, str]:
    """path -> sha256 of unpinned files as they were first downloaded."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}
