"""The options of `chat` and `serve`, each with what it must give."""

import http.client
import io
import json
import threading

import torch
import uvicorn
from in_command import command
from obeyed import watched
from options_given import options_of, row

ASKED = "Tom has 3 pens. Amy gives Tom 6 more. How many pens does Tom have now?"


def chatted(here, *words) -> str:
    """The first line of the chat's answers to one question, without the notes."""
    here.monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\n"))
    told = command("chat", *words, "--max-new-tokens", 8)
    return told.splitlines()[-1]


@row("serve --revision", *(name for name in options_of("chat") if name != "chat --debug"))
def answers_of_the_chat(here):
    """They are those of `generate` with the same options."""
    adapter = here.run / "adapter"
    ways = [(), "--temperature 5".split(), "--temperature 5 --seed 5".split()]
    ways += ["--temperature 5 --top-k 3".split(), "--temperature 5 --top-p 0.6".split()]
    ways += ["--quantize nf4 --dtype bfloat16 --decode-memory plain".split()]
    found = []
    with watched(here.monkeypatch) as seen:
        for words in [*(("--model", "pocket-llama", *way) for way in ways), (here.run,),
                      ("--model", "pocket-opt", "--device", "cpu,cpu"),
                      ("--model", "pocket-llama", "--adapter", adapter)]:  # fmt: skip
            found.append(chatted(here, *words))
            told = command("generate", *words, "--instruction", ASKED, "--max-new-tokens", 8)
            assert told.splitlines()[0].strip() == found[-1].strip(), words
    assert len(set(found)) > 5
    models = {id(model): model for model, _ in seen}.values()
    kinds = {(m.dtype, m.quantize, m.decode_memory, len(m.stages)) for m in models}
    assert (torch.bfloat16, "nf4", "plain", 0) in kinds
    assert any(stages == 2 for *_, stages in kinds)
    prompts = []  # how long they are
    for more in ((), ("--system", "Be kind to all.")):
        with watched(here.monkeypatch) as seen:
            chatted(here, "--model", "pocket-llama", *more)
        prompts.append(seen[0][1][1])
    assert prompts[1] > prompts[0] + 3
    here.monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\n"))
    short = command("chat", "--model", "pocket-llama", "--max-new-tokens", 2).splitlines()[-1]
    assert found[0].startswith(short)
    folder = here.copy_of(seen[0][0].folder)
    for name in ("chat", "serve"):
        told = command(name, "--model", folder, "--revision", "v9", status=1)
        assert "only repositories of the hub have revisions" in told


class Answered:
    """The server of the command, on a port of its own, and what it said to some requests."""

    def __init__(self, here, *words, act, status=0):
        real, self.result = uvicorn.Server.run, None

        def run(server, sockets):
            thread = threading.Thread(target=real, args=(server, sockets))
            thread.start()
            self.host, self.port, *_ = sockets[0].getsockname()
            try:
                self.result = act(self)
            finally:
                server.should_exit = True
                thread.join(20)

        with here.monkeypatch.context() as patch:
            patch.setattr(uvicorn.Server, "run", run)
            self.told = command("serve", *words, status=status)

    def ask(self, path: str, body: dict | None = None, key: str = ""):
        """(status, JSON or text) of a request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, headers)
        response = connection.getresponse()
        read = response.read().decode()
        return response.status, json.loads(read) if read.startswith("{") else read

    def says(self, model: str, **more) -> str:
        messages = [{"role": "user", "content": ASKED}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8} | more
        status, answer = self.ask("/v1/chat/completions", body)
        return answer["choices"][0]["message"]["content"] if status == 200 else answer["error"]

    def models(self) -> dict:
        return {one["id"]: one["parent"] for one in self.ask("/v1/models")[1]["data"]}


@row(*(name for name in options_of("serve") if name not in ("serve --debug", "serve --revision")))
def what_is_served(here):
    base, adapter = ("--model", "pocket-llama", "--port", 0), here.run / "adapter"
    expected = command("generate", here.run, "--instruction", ASKED, "--max-new-tokens", 8)

    def two(server):
        return server.models(), server.says("math"), server.says("pocket-llama")

    found = Answered(here, *base, "--adapter", f"math={adapter}", act=two)
    models, text, plain = found.result
    assert models == {"pocket-llama": None, "math": "pocket-llama"}
    assert (text, found.host) == (expected.splitlines()[0], "127.0.0.1")
    assert "serving   pocket-llama, math at http://127.0.0.1:" in found.told
    words = ("--dtype", "bfloat16", "--quantize", "nf4", "--decode-memory", "plain")
    with watched(here.monkeypatch) as seen:
        found = Answered(
            here, here.run, "--port", 0, *words, "--device", "cpu", act=Answered.models
        )
        assert found.result == {"pocket-llama": None, "run": "pocket-llama"}
        Answered(here, *base, *words, act=lambda s: s.says("pocket-llama"))
        Answered(here, *base, "--device", "cpu,cpu", act=lambda s: s.says("pocket-llama"))
    first, *_, last = [model for model, _ in seen]
    assert (first.dtype, first.quantize, first.decode_memory) == (torch.bfloat16, "nf4", "plain")
    assert len(last.stages) == 2

    def limited(server):
        many, length = server.says("pocket-llama", n=6), server.says("pocket-llama", max_tokens=99)
        return many, length, server.ask("/metrics")[1], server.says("pocket-llama", n=5)

    small = "--slots 2 --waiting 3 --max-length 60 --host 127.0.0.2".split()
    found = Answered(here, *base, *small, act=limited)
    many, length, metrics, fits = found.result
    assert (many["code"], length["code"]) == ("overloaded", "context_length_exceeded")
    assert "room for 60" in length["message"]
    assert "llm_adapters_slots 2\n" in metrics
    assert (fits, found.host) == (plain, "127.0.0.2")
    slow = {"n": 100, "max_tokens": 100, "stop": "never said"}
    found = Answered(here, *base, "--time-limit", 0.2,
                     act=lambda s: s.says("pocket-llama", **slow))  # fmt: skip
    assert found.result["code"] == "timeout"

    body = {"lora_name": "new", "lora_path": "run/adapter"}

    def load(server):
        return [server.ask("/v1/load_lora_adapter", body, key)[0] for key in ("", "k1")]

    assert Answered(here, *base, act=load).result == [403, 403]
    found = Answered(here, *base, "--adapter-dir", here.made, "--api-key", "k1", act=load)
    assert found.result == [401, 200]
    here.monkeypatch.setenv("LLM_ADAPTERS_API_KEY", "k1")
    assert Answered(here, *base, "--adapter-dir", here.made, act=load).result == [401, 200]
    here.monkeypatch.delenv("LLM_ADAPTERS_API_KEY")
    for words, said in (
        (("--adapter", "a b=x"), "should be NAME=FOLDER"),
        (("--adapter", f"pocket-llama={adapter}"), "is the base model's name"),
        (("--adapter", adapter, "--adapter", adapter), "the same name"),
        (("--slots", 0), "--slots 0 should be from 1"),
        (("--adapter-dir", "/nowhere"), "is no folder"),
        (("--host", "300.1.1.1"), "cannot listen at 300.1.1.1"),
        (("--port", 70000), "cannot listen"),
    ):
        assert said in command("serve", "--model", "pocket-llama", *words, status=1), words
