"""Python files as several processes, as torchrun starts them."""

import random
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from processes import ROOT, Started, start

WORLDS = [4, 2]


def free_port() -> int:
    """One that is still free when rank 0 takes it, seconds later: below those that connections
    are given; another one in every process that runs tests, whatever has seeded `random` there
    (lm-evaluation-harness does).
    """
    while True:
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port := random.SystemRandom().randrange(20_000, 32_000)))
            return port


def launch(
    world: int, *command, cwd: Path | None = None, more: dict[str, str] | None = None
) -> list[Started]:
    """As torchrun does, without its own three seconds."""
    common = {
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        **(more or {}),
    }
    return [
        start(*command, cwd=cwd, environment=common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in range(world)
    ]


def finish(started: list[Started], timeout: int = 900) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each."""
    try:
        texts = [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *text) for one, text in zip(started, texts, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where four processes have worked, and then two."""
    folder = tmp_path_factory.mktemp("parallel")
    write_checkpoint(folder / "tiny")
    for world in WORLDS:
        ended = finish(launch(world, ROOT / "tests" / "in_processes.py", folder))
        assert [status for status, *_ in ended] == [0] * world, "\n".join(
            error[-3000:] for *_, error in ended
        )
    return folder


def found(folder: Path, name: str, world: int):
    return torch.load(folder / f"{name}-{world}.pt")


def close(a, b, **tolerance) -> None:
    torch.testing.assert_close(
        torch.tensor(a["losses"]), torch.tensor(b["losses"]), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        torch.tensor(a["norms"]), torch.tensor(b["norms"]), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        a["weights"], b["weights"], **{"rtol": 1e-3, "atol": 1e-5} | tolerance
    )
