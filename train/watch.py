"""Another process of the job that ends is noticed, also by one that waits in C.

    rank 0 ──── a connection each, on which nothing is sent before the end ──── rank 1, 2, 3 ...

A process that waits for the others inside NCCL does not return to Python when one of them is gone,
and so obeys no signal. Here a thread waits on a connection of gloo's own: the system closes it when
a process ends, however that happens. Others than rank 0 learn of each other's end by its.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

GRACE = 10.0  # seconds that a process has to end in its own way, after another has ended
SAVING = 300.0  # seconds after which a save is given up
FOREVER = timedelta(days=3650)


class Watch:
    """Watches the other processes from here to `stop`. All processes make one at the same time.

    on_lost: called in the thread when another has ended and this one has not within GRACE; then
    what was armed is called, and the process ends with status 1.
    """

    def __init__(self, rank: int, world: int, on_lost: Callable[[], None]):
        self.on_lost = on_lost
        self.save: Callable[[], None] | None = None  # armed: what rank 0 keeps of its work
        self.lock = threading.Lock()  # held while `save` runs or changes
        self.stopped = False
        self.group = dist.new_group(backend="gloo", timeout=FOREVER)
        others = range(1, world) if rank == 0 else [0]
        self.threads = {
            other: threading.Thread(target=self.listen, args=(other,), daemon=True)
            for other in others
        }
        for thread in self.threads.values():
            thread.start()

    def listen(self, other: int) -> None:
        """Wait for the goodbye of another process, or its end."""
        try:
            dist.recv(torch.empty(1), other, self.group)
            return
        except RuntimeError:  # the connection is closed
            time.sleep(GRACE)
        with self.lock:
            if self.stopped:
                return
            self.stopped = True
            saving = threading.Thread(target=self.rescue, daemon=True)
            try:
                self.on_lost()
                saving.start()
                saving.join(SAVING)
            finally:
                os._exit(1)  # the main thread may never return from C

    def arm(self, save: Callable[[], None] | None) -> None:
        """Set what is called when another process is lost; waits for a call that is under way."""
        with self.lock:
            self.save = save

    def rescue(self) -> None:
        """Call what was armed, on a stream that does not wait for the others' sums."""
        if self.save is None:
            return
        save, self.save = self.save, None
        if torch.cuda.is_available():
            with torch.cuda.stream(torch.cuda.Stream()):
                save()
        else:
            save()

    def stop(self, goodbye: bool = False) -> None:
        """Watch no longer; goodbye: nothing went wrong, and all processes stop at the same time."""
        with self.lock:
            self.stopped = True
        if goodbye:
            with suppress(RuntimeError):  # gone since
                for other in self.threads:
                    dist.send(torch.ones(1), other, self.group)
            for thread in self.threads.values():
                thread.join(GRACE)
