"""Work for test_benchmark.py, which fresh processes import; needs no torch."""

import os
import time

from files.errors import UserError


def counting(options: dict):
    """Facts: how often it ran, in which process, and from when to when."""
    runs = []

    def run() -> dict:
        began = time.monotonic()
        runs.append(bytearray(options["bytes"]))
        runs[-1][::1000] = bytes([1]) * len(runs[-1][::1000])  # touch every page
        time.sleep(options["sleep"])
        return {"runs": len(runs), "process": os.getpid(), "span": [began, time.monotonic()]}

    return run


def failing(options: dict):
    def run() -> dict:
        time.sleep(options.get("sleep", 0))
        print("this disturbs no answer")
        raise UserError("no such work")

    return run
