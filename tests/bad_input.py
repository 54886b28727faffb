"""One command on a folder that may be broken, and how it has to end."""

import contextlib
import io
import json
import struct
import time
from pathlib import Path

import run as command_line


def generate(folder: Path, *what: str) -> tuple[int, str]:
    """(exit status, stderr) of the command, in this process."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        limit = () if "--max-new-tokens" in what else ("--max-new-tokens", "2")
        status = command_line.main(
            ["generate", "--model", str(folder), *(what or ("--prompt-ids", "5,6,7")), *limit]
        )
    return status, errors.getvalue()


def check(folder: Path, *what: str) -> str:
    """Run it: either it works, or it says why in one line. Returns that line."""
    began = time.process_time()
    status, errors = generate(folder, *what)
    assert time.process_time() - began < 20
    if status == 0:
        return ""
    assert status == 1
    assert errors.startswith("run.py: ")
    assert errors.count("\n") == 1
    assert len(errors) < 2000
    return errors


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def write_header(
    folder: Path, header: bytes, data: bytes = b"\0" * 16, length: int | None = None
) -> None:
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header) if length is None else length) + header + data
    )
