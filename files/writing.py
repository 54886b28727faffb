"""Atomic writing, a lock on a folder, and files of JSON lines."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from files.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # not a Unix
    fcntl = None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then fsync and rename it: a kill leaves the old file or the new.

    Raises UserError naming the path if the disk is full or the folder cannot be written; the old
    file stays.
    """
    for stray in path.parent.glob(f".{path.name}.*.tmp"):
        if not is_running(stray.name.split(".")[-2]):  # its process was killed
            stray.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except RuntimeError as error:  # torch raises this for a full disk
        raise UserError(
            f"cannot write {path}: the disk is full, or a file may not be as large "
            f"({str(error).splitlines()[0]}); what was there before is as it was"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def is_running(process: str) -> bool:
    """Whether there is another process of this number, where the system can say so."""
    if fcntl is None or not process.isdecimal() or int(process) in (0, os.getpid()):
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of somebody else
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """A whole text file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def reason(error: Exception) -> str:
    """Why something could not be written, without an error number and temporary names."""
    return getattr(error, "strerror", None) or str(error)


def make_folder(path: Path) -> None:
    """The folder and those above it. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((one for one in (path, *path.parents) if one.is_file()), None)
        why = f"{file} is a file" if file else reason(error)
        raise UserError(f"cannot make the folder {path}: {why}") from None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create the folder and lock it: within this block no other process can hold it.

    The lock is on the folder itself: it leaves no file and ends with the process. If the folder was
    created here and is still empty, it is removed again. Raises UserError if another process holds
    it.
    """
    is_new = not folder.exists()
    make_folder(folder)
    try:
        handle = os.open(folder, os.O_RDONLY) if fcntl else None
    except OSError as error:
        raise UserError(f"cannot open the folder {folder}: {error.strerror}") from None
    try:
        if handle is not None and not lock(handle):
            raise UserError(f"another process is running in {folder}: wait for it, or stop it")
        refuse_links(folder)
        try:
            yield
        finally:
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        if handle is not None:
            os.close(handle)


def wait_for(folder: Path) -> None:
    """Wait until no other process holds the folder."""
    if fcntl and folder.is_dir():
        handle = os.open(folder, os.O_RDONLY)
        try:
            lock(handle, wait=True)
        finally:
            os.close(handle)


def refuse_links(folder: Path) -> None:
    """Raise UserError for a link in a folder or in those in it: nothing is written through one."""
    for stars in ("*", "*/*"):
        if link := next((path for path in folder.glob(stars) if path.is_symlink()), None):
            raise UserError(
                f"{link} is a link, and a run writes into its own folder only: put what it leads "
                "to in its place, or remove it"
            )


def lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds the lock.

    Without flock (Windows, some network folders) nothing is locked.
    """
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class JsonLines:
    """A file of JSON objects to append to, one a line; a line cut short by a kill is ended first.

    Raises UserError when it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            before = self.path.read_bytes() if self.path.is_file() else b""
            self.file = open(self.path, "a", encoding="utf-8")
            if before and not before.endswith(b"\n"):
                self.file.write("\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {reason(error)}") from None
        return self

    def write(self, entry: dict) -> None:
        try:
            print(json.dumps(entry), file=self.file, flush=True)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {reason(error)}") from None

    def __exit__(self, kind, *_) -> None:
        try:
            self.file.close()
        except OSError as error:  # the rest of the buffer cannot be written
            if kind is None:
                raise UserError(f"cannot write {self.path}: {reason(error)}") from None
