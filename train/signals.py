"""SIGINT and SIGTERM as a wish to stop after the step at hand."""

import os
import signal
import threading
from contextlib import suppress


class Signals:
    """Within this block SIGINT and SIGTERM are only noted, in `received`; a second one ends the process at once."""

    def __enter__(self):
        self.received = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # the only one that may listen
            self.before = {
                number: signal.signal(number, self.note)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def note(self, number: int, frame) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number
        with suppress(OSError):  # nobody reads stderr any more: stopping goes on
            if os.environ.get("RANK", "0") == "0":  # torchrun passes a signal on to all processes
                os.write(
                    2, b"\nstopping after this step (once more to stop at once) ...\n"
                )  # print() may be at work just now and cannot be entered twice

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
