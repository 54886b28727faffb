"""A server under load, measured from outside: PYTHONPATH=.:tests python tests/serve/load.py

--case throughput    32 questions over 8 adapters, at once and one after another
--case clients       200 clients for two minutes: streams and whole answers, slow readers,
                     clients that leave, bodies that are no request; memory over the time
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from adapters import attach, parameters, remove, save_adapter
from model import load_model

PRESETS = ("lora", "parallel", "prefix", "prompt", "dora", "ia3", "unipelt", "mad-x")
PROBLEM = "Fred starts with {} toys. Fred sells 7 of them. Find how many toys Fred has now."


def write_adapters(base: str, folder: Path, presets: list[str]) -> list[str]:
    """NAME=FOLDER of adapters with small random numbers."""
    model, words = load_model(base, torch.float32), []
    for number, preset in enumerate(presets):
        torch.manual_seed(number)
        attach(model, preset, name="x")
        for parameter in parameters(model):
            parameter.data.add_(0.01 * torch.randn_like(parameter))
        save_adapter(model, folder / f"a{number}", "x")
        remove(model, "x")
        words += ["--adapter", f"a{number}={folder / f'a{number}'}"]
    return words


async def ask(port: int, body: dict | bytes, read: float = 0.0, leave_after: int | None = None):
    """(status, text, seconds of each event since the start); reads slowly, or leaves early."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    begin, times, text = time.perf_counter(), [], ""
    status = int((await reader.readline()).split()[1])
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter() - begin)
                choices = json.loads(line[6:]).get("choices") or [{"delta": {"content": ""}}]
                text += choices[0]["delta"]["content"]
                await asyncio.sleep(read)
            elif line.startswith(b"{") and status == 200:
                text = json.loads(line)["choices"][0]["message"]["content"]
            if leave_after is not None and len(times) >= leave_after:
                break
    finally:
        writer.close()
    return status, text, times


def question(model: str, number: int, tokens: int, stream: bool = True) -> dict:
    messages = [{"role": "user", "content": PROBLEM.format(number)}]
    return {
        "model": model, "messages": messages, "temperature": 0, "max_tokens": tokens,
        "stream": stream,
    }  # fmt: skip


def memory(pid: int) -> float:
    """Resident MB of a process."""
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) / 1024


async def throughput(port: int, tokens: int, questions: int, rounds: int) -> None:
    """The median of some rounds: two processes that share a core take turns by chance."""
    bodies = [question(f"a{i % 8}", 10 + i, tokens) for i in range(questions)]
    for body in bodies[:8]:
        await ask(port, body)
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        alone = [await ask(port, body) for body in bodies]
        middle = time.perf_counter()
        together = await asyncio.gather(*(ask(port, body) for body in bodies))
        found.append((middle - begin, time.perf_counter() - middle))
        assert [text for _, text, _ in together] == [text for _, text, _ in alone]
    one, all_ = map(statistics.median, zip(*found, strict=True))
    times = sorted(alone_ / at_once for alone_, at_once in found)
    events = sum(len(times) for _, _, times in together)
    print(f"{questions} questions, {events} events: {one:.2f} s one after another, {all_:.2f} s at "
          f"once, {statistics.median(times):.2f} times as fast ({times[0]:.2f} to {times[-1]:.2f} "
          f"in {rounds} rounds), {events / all_:.0f} events/s")  # fmt: skip
    report(alone, "one after another")
    report(together, "at once")


def report(answers: list, when: str) -> None:
    first = [times[0] for _, _, times in answers if times]
    between = [b - a for _, _, t in answers for a, b in pairwise(t)]
    if len(first) > 1 and len(between) > 1:
        print(f"  {when}: first token {spread(first)}, between tokens {spread(between)}")


def spread(seconds: list[float]) -> str:
    cut = statistics.quantiles(seconds, n=20)
    return f"{1000 * statistics.median(seconds):.0f} ms (95% below {1000 * cut[-1]:.0f} ms)"


async def clients(port: int, pid: int, count: int, seconds: float, tokens: int) -> None:
    expected = {}
    for model in [f"a{i}" for i in range(8)]:
        for number in range(3):
            expected[model, number] = (await ask(port, question(model, number, tokens)))[1]
    until, done, wrong, refused, left = time.perf_counter() + seconds, [], 0, 0, 0
    sizes = []

    async def client(number: int) -> None:
        nonlocal wrong, refused, left
        rng = random.Random(number)
        while time.perf_counter() < until:
            model, problem = rng.choice(list(expected))
            kind = rng.random()
            if kind < 0.1:  # leaves early
                await ask(port, question(model, problem, tokens), leave_after=rng.randint(0, 3))
                left += 1
                continue
            if kind < 0.15:
                status, *_ = await ask(port, rng.randbytes(50))
                assert status == 400
                continue
            stream, read = kind < 0.6, 0.02 if kind < 0.2 else 0.0
            answer = await ask(port, question(model, problem, tokens, stream), read)
            if answer[0] == 503:
                refused += 1
                await asyncio.sleep(0.2)
            else:
                wrong += answer[:2] != (200, expected[model, problem])
                done.append(answer)

    async def watch() -> None:
        while time.perf_counter() < until:
            sizes.append(memory(pid))
            await asyncio.sleep(seconds / 12)

    await asyncio.wait_for(
        asyncio.gather(watch(), *(client(n) for n in range(count))), seconds + 120
    )
    print(
        f"{count} clients, {seconds:.0f} s: {len(done)} answers, {wrong} wrong, {left} left early, "
        f"{refused} refused as too many"
    )
    report(done, "answered")
    print("  resident memory, MB: " + " ".join(f"{size:.0f}" for size in sizes))
    assert done
    assert not wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=("throughput", "clients"), default="throughput")
    parser.add_argument("--model", default="pocket-llama")
    parser.add_argument("--kind", default="", help="one preset for all eight adapters")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, help="of the clients; the server has the others")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        words = write_adapters(o.model, Path(name), [o.kind] * 8 if o.kind else list(PRESETS))
        command = [sys.executable, "run.py", "serve", "--model", o.model, *words, "--dtype",
                   "float32", "--port", "0", "--slots", "32", "--max-length", "256"]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        try:
            line = server.stdout.readline()
            if o.core is not None:
                os.sched_setaffinity(0, {o.core})
            port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
            if o.case == "throughput":
                asyncio.run(throughput(port, o.tokens, o.questions, o.rounds))
            else:
                asyncio.run(clients(port, server.pid, o.clients, o.seconds, o.tokens))
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
        assert status == 0, status


if __name__ == "__main__":
    main()
