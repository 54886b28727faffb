"""Files from the network into the user's cache: verified, resumable, whole or not at all."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from model.errors import UserError
from model.files import make_folder, write_text

MIRROR = "LLM_ADAPTERS_MIRROR"  # an address that holds the same files, for machines that reach no other
CACHE = "LLM_ADAPTERS_CACHE"
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
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-adapters"


def fetch(files: list[File], folder: Path | None = None) -> list[Path]:
    """Download what is not there yet; returns the paths of all. Raises UserError in one line that says what to do."""
    folder = folder or cache_folder()
    return [folder / file.path if (folder / file.path).is_file() else download(file, folder) for file in files]


def download(file: File, folder: Path) -> Path:
    """One file, on from where an earlier attempt stopped. Of two processes the second waits and finds it there."""
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    make_folder(target.parent)
    try:
        with open(part, "ab") as out:
            lock(out)
            if target.is_file():  # another process has been faster
                part.unlink(missing_ok=True)
                return target
            receive(file, out)
    except UserError:
        raise
    except (URLError, OSError, ValueError) as error:
        reason = f"status {error.code}" if isinstance(error, HTTPError) else getattr(error, "reason", None) or error
        raise UserError(f"{address(file)} cannot be fetched ({reason}): try again (it goes on from where it stopped), set {MIRROR} to a copy, "
                        f"or give --data-dir FOLDER, where {file.path} is") from None
    found = sum_of(part)
    known = file.sha256 or known_sums(folder).get(file.path)
    if known and found != known:
        part.unlink()
        raise UserError(f"{address(file)} is not the file it should be: its sha256 is {found[:16]}..., not {known[:16]}...; nothing was kept")
    os.replace(part, target)
    if not known:
        write_text(folder / SUMS, json.dumps(known_sums(folder) | {file.path: found}, indent=2) + "\n")
    return target


def receive(file: File, out) -> None:
    """Append what is missing to `out`."""
    have = os.fstat(out.fileno()).st_size
    headers = {"User-Agent": "llm-adapters"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(address(file), headers=headers), timeout=WAIT)
    except HTTPError as error:
        if error.code != 416:  # 416: there is nothing behind what we have
            raise
        return
    with answer:
        if have and answer.status != 206:  # the server sends the whole file
            out.truncate(0)
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        interval = 0.1 if sys.stderr.isatty() else 10
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=Path(file.path).name, dynamic_ncols=True, mininterval=interval) as bar:
            while piece := answer.read(PIECE):
                out.write(piece)
                bar.update(len(piece))
        out.flush()
        os.fsync(out.fileno())
        if total is not None and out.tell() != total:
            raise UserError(f"{address(file)} broke off after {out.tell():,} of {total:,} bytes: try again, it goes on from there")


def lock(file) -> None:
    """Hold the file for this process alone, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX)


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
