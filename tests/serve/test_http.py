"""The server as OpenAI's own client sees it, and as clients do that are in error or leave."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import openai
import pytest
from serve_parts import BASE, PROBLEM, adapters, loop_of, served  # noqa: F401 - a fixture

from eval.generate import generate_text

ASKED = [{"role": "user", "content": PROBLEM}]
KEY = "sk-of-a-test"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def loop(adapters):
    return loop_of(adapters, "lora", "prefix", "parallel", slots=4, waiting=12)


@pytest.fixture(scope="module")
def url(loop, adapters):
    with served(loop, KEY, adapters) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def chat(client):
    return client.chat.completions.create


def ask(url: str, path: str, body: bytes | str = b"", method="POST", **headers):
    """(status, body) of a request by hand."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request(method, path, body, {"Authorization": f"Bearer {KEY}"} | headers)
    response = connection.getresponse()
    return response.status, response.read()


def metric(url: str, name: str) -> float:
    text = ask(url, "/metrics", method="GET")[1].decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_models_have_parents(client):
    models = {model.id: model.parent for model in client.models.list()}
    assert models == {BASE: None, "lora": BASE, "prefix": BASE, "parallel": BASE}
    assert client.models.retrieve("lora").root == BASE
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        client.models.retrieve("x")


def test_a_chat_whole_and_as_a_stream(chat, loop):
    asked = {"model": "lora", "messages": ASKED, "temperature": 0, "max_tokens": 12}
    whole = chat(**asked)
    text = whole.choices[0].message.content
    question = loop.prompt("lora", ASKED)
    assert whole.usage.prompt_tokens == len(question)
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (12, "length")
    chunks = list(chat(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    texts = {
        chat(**asked | {"model": name}).choices[0].message.content for name in (BASE, "prefix")
    }
    assert len(texts | {text}) == 3
    parts = [{"type": "text", "text": PROBLEM[:20]}, {"type": "text", "text": PROBLEM[20:]}]
    told = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
    longer = chat(**asked | {"messages": told})
    assert longer.usage.prompt_tokens > len(question)
    same = chat(**asked | {"messages": told[1:]})
    assert same.choices[0].message.content == text


def test_completions_of_several_prompts(client, loop):
    asked = {"model": BASE, "temperature": 0, "max_tokens": 6}
    found = client.completions.create(**asked, prompt=["Tom has", "Amy"], n=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in found.choices]
    assert (texts[0], texts[2]) == (texts[1], texts[3])
    ids = [loop.tokenizer.encode("Tom has"), loop.tokenizer.encode("Amy")]
    again = client.completions.create(**asked, prompt=ids)
    assert [choice.text for choice in again.choices] == texts[::2]
    assert found.usage.prompt_tokens == sum(map(len, ids))
    assert found.usage.completion_tokens == 2 * again.usage.completion_tokens
    assert client.completions.create(model=BASE, prompt=PROBLEM).usage.completion_tokens <= 16


def test_seeds_and_stops(chat):
    asked = {"model": "parallel", "messages": ASKED, "max_tokens": 20, "n": 3}
    first = [c.message.content for c in chat(**asked, seed=5, temperature=1.5).choices]
    again = [c.message.content for c in chat(**asked, seed=5, temperature=1.5).choices]
    other = [c.message.content for c in chat(**asked, seed=50, temperature=1.5).choices]
    assert first == again != other
    assert len(set(first)) == 3
    assert len({c.message.content for c in chat(**asked, temperature=1.5).choices}) == 3
    (greedy,) = {c.message.content for c in chat(**asked, temperature=0).choices}
    stop = greedy[len(greedy) // 2 :][:3]
    (choice, *_) = chat(**asked, temperature=0, stop=[stop, "zzz"]).choices
    assert choice.message.content == greedy[: greedy.index(stop)]
    assert choice.finish_reason == "stop"
    narrow = chat(**asked, seed=5, temperature=1.5, top_p=0.001).choices[0].message.content
    assert narrow == greedy == chat(
        **asked, seed=5, temperature=1.5, extra_body={"top_k": 1}
    ).choices[0].message.content  # fmt: skip


def test_log_probabilities(client, chat):
    asked = {"temperature": 0, "max_tokens": 5, "model": "lora"}
    found = chat(**asked, messages=ASKED, logprobs=True, top_logprobs=2).choices[0]
    tokens = found.logprobs.content
    assert "".join(token.token for token in tokens) == found.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in tokens)  # greedy
    assert all(0 > t.top_logprobs[0].logprob >= t.top_logprobs[1].logprob for t in tokens)
    chunks = chat(**asked, messages=ASKED, logprobs=True, stream=True)
    streamed = [one for c in chunks for one in (c.choices[0].logprobs.content or [])]
    assert [one.logprob for one in streamed] == [token.logprob for token in tokens]
    plain = client.completions.create(**asked, prompt="Tom has", logprobs=3).choices[0]
    assert len(plain.logprobs.tokens) == len(plain.logprobs.token_logprobs) == 5
    assert all(len(top) == 3 for top in plain.logprobs.top_logprobs)
    assert chat(**asked, messages=ASKED).choices[0].logprobs is None


REFUSED = [  # what is asked, the status, what is said
    ({"model": "x"}, 404, "there is no model 'x'"),
    ({"model": ""}, 404, "there is no model ''"),
    ({"temperature": 3}, 400, "temperature = 3 should be a number from 0 up to 2"),
    ({"temperature": True}, 400, "temperature = True"),
    ({"top_p": 0}, 400, "top_p = 0"),
    ({"n": 0}, 400, "n = 0"),
    ({"n": 129}, 400, "n = 129"),
    ({"max_tokens": 5000}, 400, "there is room for 256"),
    ({"max_tokens": -1}, 400, "max_tokens = -1"),
    ({"messages": []}, 400, "messages should end"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "messages should end"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role = 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "a text"),
    ({"messages": [{"role": "user"}]}, 400, "content = None should be a text"),
    ({"messages": [{"role": "user", "content": "x" * 4000}]}, 400, "there is room for 256"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "not valid Unicode"),
    ({"messages": "Hi"}, 400, "messages = 'Hi'"),
    ({"stop": [""]}, 400, "1 to 1,000 characters"),
    ({"stop": ["a"] * 17}, 400, "up to 16 texts"),
    ({"tools": [{"type": "function"}]}, 400, "tools = "),
    ({"presence_penalty": 0.5}, 400, "presence_penalty = 0.5 is not supported"),
    ({"frequency_penalty": True}, 400, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options is for"),
    ({"top_logprobs": 2}, 400, "needs logprobs"),
    ({"tempurature": 1}, 400, "did you mean"),
    ({"seed": -1}, 400, "seed = -1"),
]


@pytest.mark.parametrize(("changes", "status", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_answered_is_said_in_the_protocols_form(url, changes, status, said):
    body = {"model": "lora", "messages": ASKED, "max_tokens": 3} | changes
    found, text = ask(url, CHAT, json.dumps(body))
    error = json.loads(text)["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"})
    assert said in error["message"]
    assert "\n" not in error["message"]


def test_fields_in_their_neutral_values_are_taken(chat):
    chat(
        model="lora", messages=ASKED, max_completion_tokens=2, presence_penalty=0, logit_bias={},
        tools=[], response_format={"type": "text"}, user="me", stop=None, store=False,
    )  # fmt: skip


def test_bodies_that_are_no_request(url):
    """A fuzz: valid bodies with bytes cut, changed and repeated. Each is answered by an error in
    the protocol's form or as what it still is; the server goes on."""
    rng = random.Random(0)
    valid = json.dumps({"model": "lora", "messages": ASKED, "max_tokens": 1, "n": 1}).encode()
    bodies = [b"", b"[]", b"null", b"1", b'"x"', b"{", b"[" * 100_000, b"\xff\xfe", b"{}" * 2]
    bodies += [b'{"a":' * 3000, b"NaN", b'{"model": 1e999}', b"9" * 5000, b'{"n": ' + b"9" * 4000]
    for _ in range(60):
        body = bytearray(valid)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(body))
            change = rng.randrange(3)
            if change == 0:
                del body[at : at + rng.randint(1, 20)]
            elif change == 1:
                body[at] = rng.randrange(256)
            else:
                body[at:at] = body[at : at + rng.randint(1, 30)]
            body = body or bytearray(b"{")
        bodies.append(bytes(body))
    for body in bodies:
        for path in (CHAT, "/v1/completions", "/v1/load_lora_adapter")[: 1 + 2 * (len(body) < 5)]:
            status, text = ask(url, path, body)
            answer = json.loads(text)
            assert status == 200 or (400 <= status < 500 and answer["error"]["message"]), body
    assert ask(url, "/health", method="GET")[0] == 200
    assert metric(url, "llm_adapters_running") == 0


def test_who_may_ask(url, loop):
    body = json.dumps({"model": "lora", "messages": ASKED, "max_tokens": 1})
    assert ask(url, CHAT, body, Authorization="Bearer no")[0] == 401
    assert ask(url, CHAT, body, Authorization="Bearer é".encode().decode("latin1"))[0] == 401
    assert ask(url, "/metrics", method="GET", Authorization="")[0] == 401
    assert ask(url, "/health", method="GET", Authorization="")[0] == 200
    assert ask(url, CHAT, body, Origin="https://evil.example")[0] == 403
    assert ask(url, CHAT, body, Origin="null")[0] == 403
    assert ask(url, CHAT, body, Origin=url)[0] == 200
    assert ask(url, "/", method="GET", Host="evil.example")[0] == 403
    status, page = ask(url, "/", method="GET", Authorization="")
    assert (status, b"side by side" in page) == (200, True)
    status, text = ask(url, CHAT, b" " * 2_000_000)
    assert (status, json.loads(text)["error"]["code"]) == (413, "body_too_large")
    for method, path, expected in (
        ("GET", CHAT, 405),
        ("GET", "/v2", 404),
        ("PUT", "/v1/models", 405),
    ):
        status, text = ask(url, path, method=method)
        assert (status, bool(json.loads(text)["error"]["message"])) == (expected, True)


def test_adapters_come_and_go(client, chat, url, adapters, tmp_path):
    def post(path, **body):
        return client.post(path, body=body, cast_to=str)

    asked = {"messages": ASKED, "temperature": 0, "max_tokens": 9}
    post("/load_lora_adapter", lora_name="new/one", lora_path="ia3")
    assert chat(model="new/one", **asked).choices[0].message.content
    assert client.models.retrieve("new/one").parent == BASE
    (adapters / "out").symlink_to(tmp_path)
    (tmp_path / "x").mkdir()
    for path in ("..", str(tmp_path), "out/x", "nothing", "/etc", "a\0b"):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as error:
            post("/load_lora_adapter", lora_name="y", lora_path=path)
        assert str(tmp_path) not in str(error.value).replace(path, "")
    for name in ("", "a b", "x" * 65, BASE, "lora"):
        with pytest.raises(openai.BadRequestError):
            post("/load_lora_adapter", lora_name=name, lora_path="ia3")
    stream = chat(model="new/one", stream=True, **asked | {"max_tokens": 40})
    next(stream)
    post("/unload_lora_adapter", lora_name="new/one")
    with pytest.raises(openai.NotFoundError):
        chat(model="new/one", **asked)
    assert [c.choices[0].finish_reason for c in stream][-1] in ("length", "stop")
    with pytest.raises(openai.NotFoundError):
        post("/unload_lora_adapter", lora_name="new/one")


def test_clients_that_leave_free_their_slots(url, loop):
    """Of a stream, of a whole answer, and of one that waits for a slot."""
    for stream in (True, False):
        asked = {"model": "lora", "messages": ASKED, "temperature": 0, "n": 8}
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        headers, before = {"Authorization": f"Bearer {KEY}"}, loop.metrics.tokens
        connection.request("POST", CHAT, json.dumps(asked | {"stream": stream}), headers)
        wait_for(lambda: loop.count == 8)
        connection.sock.close()
        connection.close()
        wait_for(lambda: loop.count == 0)
        assert loop.metrics.tokens - before < 4 * 100  # all of them have more
    whole = ask(url, CHAT, json.dumps(asked | {"n": 1}))[1]
    assert json.loads(whole)["usage"]["completion_tokens"] > 100
    assert ask(url, CHAT, json.dumps({"model": "lora", "messages": ASKED}))[0] == 200


def test_a_full_line_and_a_slow_answer(loop, url, adapters, chat, monkeypatch):
    asked = {"model": "lora", "messages": ASKED, "max_tokens": 2}
    with pytest.raises(openai.InternalServerError, match="questions are waiting") as error:
        chat(**asked, n=20)
    assert (error.value.status_code, error.value.code) == (503, "overloaded")
    assert error.value.response.headers["retry-after"] == "1"
    assert loop.count == 0  # no choice of it is made
    release = loop.call(time.sleep, 0.3)
    other = loop_of(adapters)
    with served(other, seconds=0.2) as slow:
        other.call(time.sleep, 1)
        body = {"model": BASE, "messages": ASKED}
        status, text = ask(slow, CHAT, json.dumps(body))
        assert (status, json.loads(text)["error"]["code"]) == (504, "timeout")
        other.call(time.sleep, 1)
        status, text = ask(slow, CHAT, json.dumps(body | {"stream": True}))
        assert json.loads(text.removeprefix(b"data: "))["error"]["code"] == "timeout"
        wait_for(lambda: other.count == 0)
    release.result()


def test_answers_under_load_are_those_of_generate(client, loop, adapters):
    """Sixty clients, three adapters and the base, streams and whole answers; none is mixed up."""
    from adapters import load_adapter, use
    from data.prompts import TEMPLATES
    from model import load_model

    model, expected = load_model(BASE), {}
    texts = [f"Tom has {n} pens. Amy gives him {n + 3}. How many?" for n in range(2, 5)]
    for name in ("lora", "prefix", "parallel"):
        load_adapter(model, adapters / name, name)
    for name in (BASE, "lora", "prefix", "parallel"):
        use(model, [] if name == BASE else [name])
        more = {"template": TEMPLATES["alpaca"], "max_new_tokens": 8}
        found = generate_text(model, loop.tokenizer, texts, **more)
        expected |= {(name, text): answer for text, answer in zip(texts, found, strict=True)}

    def go(number: int) -> bool:
        (name, text), answer = list(expected.items())[number % len(expected)]
        asked = {"model": name, "messages": [{"role": "user", "content": text}]}
        asked |= {"temperature": 0, "max_tokens": 8}
        patient = client.with_options(max_retries=20)
        if number % 2:
            return patient.chat.completions.create(**asked).choices[0].message.content == answer
        chunks = patient.chat.completions.create(**asked, stream=True)
        return "".join(chunk.choices[0].delta.content for chunk in chunks) == answer

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(go, range(48)))
    assert len(set(expected.values())) > 8
