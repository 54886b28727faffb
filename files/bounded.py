"""Work on what other people wrote, in a child process with limits on memory and computing time.

    call("data.rendering:render_all", request, "the chat template")

The function runs in the child; request and answer go through pipes as JSON. The limits are the
system's own: a timer whose signal ends the child, and an address space that cannot grow. A handler
in Python would not do: libraries swallow its exceptions. Windows has neither: there the child is
ended after the same seconds of the clock. macOS has no limit on the address space.
"""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from files.errors import UserError

try:
    import resource
except ModuleNotFoundError:  # not a Unix
    resource = None

MEMORY = 512 * 2**20  # bytes of address space, of which Python and its modules take about 100 MB
SECONDS = 2.0  # of computing until the function calls `allow` again
REST = 20.0  # seconds without work after which a Budget begins anew
LONGEST = 200_000_000  # bytes of an answer
ROOT = Path(__file__).resolve().parent.parent
MAIN = "from files.bounded import serve; serve()"
MAIN_THREAD = threading.main_thread()
is_child = False


# ---------------------------------------------------------------- in the child
def allow(seconds: float) -> None:
    """Let the work compute for so many seconds from now on; 0: without limit.

    Outside of the child this does nothing.
    """
    if is_child and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process


class Budget:
    """What all pieces of one kind of work took so far, and may take.

    It begins anew after it was spent, and where no piece was asked for for REST seconds: a server
    works for many.
    """

    def __init__(self, seconds: float, more: float = 0.0):
        """seconds: of computing for all; more: for each further piece."""
        self.seconds, self.more = seconds, more
        self.begin()

    def begin(self) -> None:
        self.spent, self.allowed, self.last = 0.0, self.seconds, time.monotonic()

    @contextmanager
    def piece(self, what: str, seconds: float = 0.0, more: float = 0.0) -> Iterator[None]:
        """A piece of work; after so many seconds the child ends, 0: after those of the request.

        more: seconds beside those of every piece, for a long one. Raises UserError where all pieces
        take too much.
        """
        began = time.process_time()
        if time.monotonic() - self.last > REST:
            self.begin()
        if seconds:
            allow(seconds)
        try:
            yield
        finally:
            self.spent += time.process_time() - began
            self.allowed += self.more + more
            self.last = time.monotonic()
            if self.spent > self.allowed:
                allowed = self.allowed
                self.begin()
                raise UserError(f"{what}: longer than {allowed:.0f} s in all")


@contextmanager
def clock(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this block after so many seconds, whatever it waits for.

    In the main thread of a Unix; elsewhere nothing is ended.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not MAIN_THREAD:
        yield
        return

    def ring(*_) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where the error was swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def serve() -> None:
    """The child: answer requests until the parent closes the pipe."""
    global is_child
    is_child = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while head := requests.read(8):
        name, request, seconds, memory = json.loads(requests.read(int.from_bytes(head, "big")))
        module, _, function = name.partition(":")
        try:
            work = getattr(importlib.import_module(module), function)
            limit_memory(memory)
            allow(seconds)
            body = json.dumps({"answer": work(request)}).encode()
        except UserError as error:
            body = json.dumps({"error": str(error)}).encode()
        except MemoryError:
            os._exit(MEMORY_STATUS)
        allow(0)
        answers.write(len(body).to_bytes(8, "big") + body)
        answers.flush()


MEMORY_STATUS = 3  # of a child that ran out of memory


def limit_memory(size: int) -> None:
    if resource:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        size = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_AS, (size, most))


# ---------------------------------------------------------------- in the parent
class Worker:
    """The child process, which starts with the first request."""

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.owner = 0  # the process that started it: a fork of ours starts another
        self.lock = threading.Lock()

    def call(self, name: str, request, what: str, seconds: float = SECONDS, memory: int = MEMORY):
        """What the function "module:function" answers to the request.

        what: its subject in messages. Raises UserError where the function does, and where a limit
        ends it.
        """
        with self.lock:
            try:
                answer = self.exchange([name, request, seconds, memory], what)
            except BaseException:  # Ctrl-C too: what is in the pipe answers no later request
                self.close()
                raise
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["answer"]

    def exchange(self, request: list, what: str) -> dict:
        _, _, seconds, memory = request
        body = json.dumps(request).encode()
        process = self.start()
        clock = threading.Timer(seconds, process.kill) if resource is None else None
        if clock:
            clock.start()
        try:
            process.stdin.write(len(body).to_bytes(8, "big") + body)
            process.stdin.flush()
            length = int.from_bytes(process.stdout.read(8), "big")
            body = process.stdout.read(length) if 0 < length <= LONGEST else b""
        except BrokenPipeError:
            length = 0
        finally:
            if clock:
                clock.cancel()
        if length > LONGEST:
            raise UserError(f"{what} makes {length:,} bytes, too many")
        if not length or len(body) < length:
            status = process.wait()
            if status in (MEMORY_STATUS, -signal.SIGABRT):  # Rust and C++ abort
                raise UserError(f"{what} needs more than {memory // 2**20} MB of memory")
            if resource is None or status == -signal.SIGPROF:
                raise UserError(f"{what} takes longer than {seconds:g} s")
            raise UserError(f"{what} ends the process that works on it (status {status})")
        return json.loads(body)

    def start(self) -> subprocess.Popen:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            more = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
            more["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve gigabytes of addresses
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN], cwd=ROOT, env={**os.environ, **more},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.owner = os.getpid()
        return self.process

    def close(self) -> None:
        """End the child."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None


WORKER = Worker()
atexit.register(WORKER.close)
call = WORKER.call  # of the one child of this process
