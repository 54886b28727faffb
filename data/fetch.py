"""Files from the network into the user's cache: verified, resumable, whole or not at all."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from files.errors import UserError
from files.writing import make_folder, write_text

MIRROR = (
    "LLM_ADAPTERS_MIRROR"  # an address that holds the same files, for machines that reach no other
)
CACHE = "LLM_ADAPTERS_CACHE"
ELSEWHERE = f"{CACHE} names another folder to keep data in, or give --data-dir FOLDER, where it is"
SUMS = "sha256.json"  # of files that this project has no sum for: as they were when they first came
PIECE = 1 << 20
WAIT = 30  # seconds


@dataclass(frozen=True)
class File:
    """A file of the network: its path below the data folder, where it comes from, its sha256 ("": not known to this project)."""

    path: str
    url: str
    sha256: str = ""


def cache_folder() -> Path:
    """Where fetched data lives: $LLM_ADAPTERS_CACHE, else llm-adapters in the user's cache folder; never inside this package."""
    chosen = os.environ.get(CACHE)
    return (
        Path(chosen)
        if chosen
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-adapters"
    )


def fetch(files: list[File], folder: Path | None = None) -> list[Path]:
    """Download what is not there yet; returns the paths of all. Raises UserError in one line that says what to do."""
    folder = folder or cache_folder()
    return [
        folder / file.path if (folder / file.path).is_file() else download(file, folder)
        for file in files
    ]


def download(file: File, folder: Path) -> Path:
    """One file, on from where an earlier attempt stopped. Of two processes the second waits and finds it there."""
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    try:
        make_folder(target.parent)
    except UserError as error:
        raise UserError(f"{error}; {ELSEWHERE}") from None
    with alone(folder):
        if target.is_file():  # another process has been faster
            return target
        try:
            receive(file, part)
            found = sum_of(part)
        except OSError as error:
            raise UserError(
                f"cannot write {part}: {error.strerror or error}; {ELSEWHERE}"
            ) from None
        finally:
            if part.is_file() and not part.stat().st_size:
                part.unlink()
        known = file.sha256 or known_sums(folder).get(file.path)
        if known and found != known:
            part.unlink()
            raise UserError(
                f"{address(file)} is not the file it should be: its sha256 is {found[:16]}..., not {known[:16]}...; nothing was kept"
            )
        if not known:
            write_text(
                folder / SUMS, json.dumps(known_sums(folder) | {file.path: found}, indent=2) + "\n"
            )
        os.replace(part, target)
    return target


def receive(file: File, part: Path) -> None:
    """Append what is missing to `part`. Raises UserError for what the network does, OSError where the disk cannot be written."""
    with open(part, "ab") as out:
        have = os.fstat(out.fileno()).st_size
        answer = ask(file, have)
        if answer is None:  # nothing is behind what we have
            return
        with answer:
            start = (
                re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
                if answer.status == 206
                else None
            )
            if have and not (start and int(start[1]) == have):  # the server sends the whole file
                out.truncate(0)
                have = 0
                if start and int(start[1]):
                    raise UserError(
                        f"{address(file)} sends another part than was asked for: try again, it starts anew"
                    )
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length and length.isdecimal() else None
            if total is None and not file.sha256 and not getattr(answer, "chunked", False):
                raise UserError(
                    f"{address(file)} comes without its length, and this project has no sum for it: whether it is whole cannot be told"
                )
            interval = 0.1 if sys.stderr.isatty() else 10
            with tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                dynamic_ncols=True,
                mininterval=interval,
            ) as bar:
                while piece := network(file, lambda: answer.read(PIECE)):
                    out.write(piece)
                    bar.update(len(piece))
            out.flush()
            os.fsync(out.fileno())
            if total is not None and out.tell() != total:
                raise UserError(
                    f"{address(file)} broke off after {out.tell():,} of {total:,} bytes: try again, it goes on from there"
                )


def ask(file: File, have: int):
    """The server's answer to a request for all behind the first `have` bytes; None where it says that there is nothing."""
    headers = {"User-Agent": "llm-adapters"} | ({"Range": f"bytes={have}-"} if have else {})

    def open_() -> object:
        try:
            return urlopen(Request(address(file), headers=headers), timeout=WAIT)
        except HTTPError as error:
            if not have or error.code != 416:
                raise
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            return (
                None
                if whole == str(have)
                else urlopen(
                    Request(address(file), headers={"User-Agent": "llm-adapters"}), timeout=WAIT
                )
            )

    return network(file, open_)


def network(file: File, step: Callable):
    """The result of step(), which uses the network. Raises UserError."""
    try:
        return step()
    except (HTTPException, OSError, ValueError) as error:
        reason = (
            f"status {error.code}"
            if isinstance(error, HTTPError)
            else getattr(error, "reason", None) or error
        )
        again = (
            ""
            if isinstance(error, HTTPError) and 400 <= error.code < 500
            else "try again (it goes on from where it stopped), "
        )
        raise UserError(
            f"{address(file)} cannot be fetched ({' '.join(str(reason).split()) or type(error).__name__}): {again}set {MIRROR} to a copy, "
            f"or give --data-dir FOLDER, where {file.path} is"
        ) from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone, where the system can; it lets go when the process ends, however it ends."""
    try:
        guard = open(folder / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; {ELSEWHERE}") from None
    with guard:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process fetches into {folder}: waiting for it", file=sys.stderr)
            fcntl.flock(guard, fcntl.LOCK_EX)
        except OSError:  # a network folder without locks
            pass
        yield


def address(file: File) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{file.path}" if mirror else file.url


def sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sums(folder: Path) -> dict[str, str]:
    """The sums of unpinned files as they first came."""
    try:
        found = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
