"""Fresh Python processes to measure in, and what the system says of their memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from files.errors import UserError

ROOT = Path(__file__).parent.parent
STATUS = Path("/proc/self/status")


def memory_of_process(key: str) -> int:
    """Bytes of resident memory of this process, now (VmRSS) or at most (VmHWM).

    Raises UserError where the system does not say.
    """
    if not STATUS.is_file():
        raise UserError("the peak of memory is read from /proc, which this system does not have")
    return 1024 * int(STATUS.read_text().split(f"{key}:")[1].split()[0])


def run_python(
    code: str, *arguments: str, launcher: tuple[str, ...] = (), **environment: str
) -> Iterator[dict]:
    """Run code in a fresh Python process with this project on its path; yields its JSON lines.

    launcher: words before "python", such as torchrun's. Raises UserError when the process fails.
    """
    command = [*launcher, sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if process.wait():
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"status {process.returncode}"]
            reason = lines[-1].removeprefix("files.errors.UserError: ")
            raise UserError(f"the measurement ended with: {reason:.300}")
