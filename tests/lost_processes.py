"""What tests/train/test_watch.py starts several times over: training in which the last process ends
by the signal NUMBER in its fourth step, while the others wait in C, where no signal reaches them.

python tests/lost_processes.py FOLDER NUMBER, with torchrun's variables in the environment.
"""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from in_processes import CASES, trained

from cli.main import leave
from train import loop, watch
from train.parallel import started


def main(folder: Path, number: int) -> None:
    watch.GRACE = 0.3
    steps, accumulate = [], loop.accumulate

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 4:
            if processes.rank == processes.world - 1:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            dist.HashStore().wait(["nothing"], timedelta(minutes=5))  # in C, as NCCL does
        return accumulate(*arguments)

    with started() as processes:
        loop.accumulate = interrupted
        trained(folder, CASES["dropout"], processes, folder=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave(0)
