"""`python run.py`, sending itself signals at moments of the run that come whatever else the machine does:

    python tests/at_moments.py '[["step", 3, 0.01, 9]]' ARGUMENTS OF run.py      # kill -9, a hundredth of a second behind the third line of log.jsonl

A moment is (what, the how-manieth of its kind in this process, seconds to wait then, the signal), and of several processes the rank.
"""

import json
import os
import runpy
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from files.writing import JsonLines
from train import pipeline

FILES = {
    "log.jsonl": "step",
    "predictions-base.jsonl.part": "base",
    "predictions.jsonl.part": "measuring",
}  # whose next line is there
MOMENTS = json.loads(sys.argv[1])
seen = dict.fromkeys(("starting", "saving", "micro-batch", *FILES.values()), 0)


def reached(what: str) -> None:
    seen[what] += 1
    for name, count, seconds, number, *rank in MOMENTS:
        if (name, count) == (what, seen[what]) and rank in ([], [int(os.environ.get("RANK", 0))]):
            if seconds:
                threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
            else:
                os.kill(os.getpid(), number)


def write(self, entry: dict, true=JsonLines.write) -> None:
    true(self, entry)
    if self.path.name in FILES:
        reached(FILES[self.path.name])


def save(*arguments, true=torch.save) -> None:
    reached("saving")
    true(*arguments)


def summed_loss(*arguments, true=pipeline.summed_loss):
    reached("micro-batch")
    return true(*arguments)


JsonLines.write, torch.save, pipeline.summed_loss = write, save, summed_loss
reached("starting")
sys.argv = [str(Path(__file__).parent.parent / "run.py"), *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
