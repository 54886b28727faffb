"""serve: a model and its adapters over HTTP, for OpenAI's clients and a page in the browser."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from cli.options import DECODE_MEMORY, MODEL, MODEL_OPTIONS, RUN_HELP, add, given
from files.errors import UserError

KEY = "LLM_ADAPTERS_API_KEY"  # the environment variable
SERVED = {
    "--adapter NAME=FOLDER": (list, "a saved adapter and the name to ask for; may be repeated")
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_served_model(parser)
    folder = {"--adapter-dir FOLDER": "clients may load adapters from below this folder"}
    add(parser, "adapters", SERVED | folder)
    limits = {
        "--slots N": (int, "answers that are made at the same time (16)", 16),
        "--max-length N": (int, "tokens of a prompt and its answer (the model's, at most 2048)"),
        "--waiting N": (int, "questions that may wait for a slot (256)", 256),
        "--time-limit SECONDS": (float, "longest time of a request (600)", 600.0),
    }
    add(parser, "limits", limits)
    network = {
        "--host ADDRESS": ("127.0.0.1: this machine alone (default); 0.0.0.0: everyone"),
        "--port N": (int, "8000 (default); 0: any that is free", 8000),
        "--api-key KEY": f"what clients must send (default: the environment's {KEY})",
    }
    add(parser, "network", network)


def add_served_model(parser: argparse.ArgumentParser) -> None:
    """What a command answers with: a run, or a model of one process."""
    parser.add_argument("run", nargs="?", help=RUN_HELP)
    table = {key: spec for key, spec in MODEL.items() if key != "--shard"}
    add(parser, "model", table | DECODE_MEMORY)


def served_settings(options: argparse.Namespace) -> dict:
    """The options of `add_served_model` that were given, as a table of settings."""
    return given(options, MODEL_OPTIONS) | {"eval": given(options, ("decode_memory",))}


def run(options: argparse.Namespace) -> int:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise UserError(
            f"serve needs the package {error.name}: pip install 'llm-adapters[serve]', or "
            "pip install starlette uvicorn"
        ) from None
    import socket

    from serve.app import Server
    from serve.guard import LOOPBACK, Guard
    from serve.start import check_limits, load

    check_limits(options.slots, options.waiting, options.max_length, options.time_limit)
    host, key = options.host or "127.0.0.1", options.api_key or os.environ.get(KEY, "")
    folder = Path(options.adapter_dir) if options.adapter_dir else None
    if folder and not folder.is_dir():
        raise UserError(f"--adapter-dir {folder} is no folder")
    size = {"slots": options.slots, "length": options.max_length, "waiting": options.waiting}
    loop, name = load(options.run, options.adapter, served_settings(options), **size)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, options.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}, port {options.port}: {error}") from None
    server = Server(loop.start(), name, Guard(host, key), folder, options.time_limit)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    models = ", ".join([name, *loop.shelf.named])
    print(f"serving   {models} at {address}/v1; a page to try them: {address}/", flush=True)
    if host not in LOOPBACK and not key:
        print("everyone who reaches this machine may ask: set --api-key", file=sys.stderr)
    config = uvicorn.Config(
        server.app(), lifespan="off", log_level="warning", access_log=False, ws="none",
        server_header=False, timeout_graceful_shutdown=int(options.time_limit) + 1,
    )  # fmt: skip
    # uvicorn raises the signal that ended it again when all is answered
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        uvicorn.Server(config).run(sockets=[listener])
    loop.stop(options.time_limit)
    print("stopped", flush=True)
    return 0
