"""Adapters for pocket-llama that change its answers, and a server of them in this process."""

import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn

from adapters import attach, parameters, remove, save_adapter
from data.prompts import TEMPLATES
from model import load_model, load_tokenizer
from serve.app import Server
from serve.guard import Guard
from serve.loop import Loop

BASE = "pocket-llama"
PRESETS = ("lora", "parallel", "prefix", "prompt", "dora", "ia3", "unipelt", "mad-x")
STRENGTH = {"prefix": 0.5, "prompt": 0.5, "lora": 0.3, "dora": 0.2}
PROBLEM = "Fred starts with 26 toys. Fred sells 7 of them. Find how many toys Fred has now."


def write_adapters(folder: Path) -> Path:
    """A folder for each of PRESETS, with random numbers."""
    model = load_model(BASE)
    for seed, name in enumerate(PRESETS):
        torch.manual_seed(seed)
        attach(model, name, name="x")
        for parameter in parameters(model):
            parameter.data.normal_(0, STRENGTH.get(name, 0.15))
        save_adapter(model, folder / name, "x", run={"template": "alpaca"})
        remove(model, "x")
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> Path:
    return write_adapters(tmp_path_factory.mktemp("adapters"))


def loop_of(folder: Path, *names: str, **size) -> Loop:
    loop = Loop(load_model(BASE), load_tokenizer(BASE), TEMPLATES["alpaca"], **size)
    for name in names:
        loop.load(name, folder / name)
    return loop


@contextmanager
def served(loop: Loop, key: str = "", adapter_dir: Path | None = None, seconds: float = 60.0):
    """The server on a port of its own -> "http://127.0.0.1:PORT"."""
    app = Server(loop, BASE, Guard("127.0.0.1", key), adapter_dir, seconds).app()
    config = uvicorn.Config(app, lifespan="off", log_level="warning", ws="none")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, args=([listener],))
    loop.start()
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        loop.stop(10)
        assert not thread.is_alive()
        assert not loop.thread.is_alive()
