"""SIGINT, SIGTERM and SIGHUP (a closed terminal) ask a run to stop after the current step."""

import os
import signal
import threading
from contextlib import suppress

from files.terminal import STOPPING


class Signals:
    """Within this block the first signal of STOPPING is only noted, in `received` (0: none).

    A second one ends the process at once. A signal that is ignored, as SIGHUP is under nohup, stays
    ignored.
    """

    def __enter__(self):
        self.received = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, frame) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number
        if os.environ.get("RANK", "0") == "0":  # torchrun passes a signal on to all processes
            with suppress(OSError):  # stderr may be closed
                # not print(): the signal may have interrupted one, and it is not reentrant
                os.write(2, b"\nstopping after this step (once more to stop at once) ...\n")

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
