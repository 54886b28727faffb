"""A server of its own process: many clients for long, and SIGTERM while it answers."""

import http.client
import json
import os
import signal
import subprocess
import sys

import pytest
from processes import ROOT

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def test_two_hundred_clients_for_two_minutes():
    """No answer is wrong, nothing hangs; what is measured is printed."""
    words = "--case clients --clients 200 --seconds 120".split()
    command = [sys.executable, ROOT / "tests/serve/load.py", *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [float(size) for size in done.stdout.split("memory, MB:")[1].split()]
    assert sizes[-1] < 1.1 * sizes[len(sizes) // 3]  # flat
    print(done.stdout)


def test_sigterm_lets_an_answer_end():
    command = [sys.executable, "run.py", "serve", "--model", "pocket-llama", "--port", "0"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    port = int(server.stdout.readline().split("http://127.0.0.1:")[1].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": "pocket-llama", "prompt": "Tom has", "max_tokens": 200, "stream": True,
            "temperature": 2, "seed": 1}  # fmt: skip
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {")
    server.send_signal(signal.SIGTERM)
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert server.wait(30) == 0
    assert server.stdout.read().strip() == "stopped"
