"""The HTTP server: OpenAI's routes on Starlette.

Imported only by functions: Starlette and uvicorn come with the extra `serve`.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from files.errors import UserError
from model.tokens import check_ids
from serve.guard import Guard, Problem
from serve.loop import Loop
from serve.protocol import Asked, Chat, Completion, adapter_request, asked, error
from serve.questions import Piece, Question, Refused
from serve.reply import Reply
from serve.stream import Pieces, Stream, events, unless_gone

PAGE = Path(__file__).parent / "page.html"
STATUS = {"model_not_found": 404, "overloaded": 503, "stopping": 503}  # of Refused's codes
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " + (
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GONE = 499  # the client left before there was an answer, as nginx counts it


class Server:
    """The routes. name: of the base. adapter_dir: adapters below it may be loaded over HTTP.

    seconds: the longest that a request may take, waiting included.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        guard: Guard,
        adapter_dir: Path | None = None,
        seconds: float = 600.0,
    ):
        self.loop, self.name, self.guard, self.seconds = loop, name, guard, seconds
        self.adapter_dir, self.started = adapter_dir, int(time.time())

    def app(self) -> Starlette:
        post, routes = {"methods": ["POST"]}, self.route
        return Starlette(
            routes=[
                routes("/", self.page, is_open=True),
                routes("/health", self.health, is_open=True),
                routes("/metrics", self.metrics),
                routes("/v1/models", self.models),
                routes("/v1/models/{name:path}", self.model),
                routes("/v1/completions", partial(self.answer, kind=Completion), **post),
                routes("/v1/chat/completions", partial(self.answer, kind=Chat), **post),
                routes("/v1/load_lora_adapter", self.load, **post),
                routes("/v1/unload_lora_adapter", self.unload, **post),
            ],
            exception_handlers={HTTPException: no_route},
        )

    def route(self, path: str, handle: Callable, is_open: bool = False, **more) -> Route:
        """A route whose errors have the protocol's form, and whose requests are counted."""

        async def endpoint(request: Request) -> Response:
            try:
                self.guard.check(request.headers, is_open)
                response = await handle(request)
            except Exception as wrong:
                response = failed(wrong)
            model = getattr(request.state, "model", "")
            self.loop.metrics.requests[model, response.status_code] += 1
            return response

        return Route(path, endpoint, **more)

    # ---- what is here

    async def page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": POLICY})

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.loop.thread.is_alive() else 503)

    async def metrics(self, request: Request) -> Response:
        live = len(self.loop.answers)
        gauges = {
            "running": ("Rows that are answered or wait in the engine.", live),
            "waiting": ("Questions that are not in the engine yet.", self.loop.count - live),
            "slots": ("Rows at a time.", self.loop.slots),
            "adapters": ("Adapters that can be asked for.", len(self.loop.shelf.named)),
        }
        text = self.loop.metrics.text(gauges)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        names = [self.name, *self.loop.shelf.named]
        return JSONResponse({"object": "list", "data": [self.card(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.adapter(name)
        return JSONResponse(self.card(name))

    def card(self, name: str) -> dict:
        adapter = self.loop.shelf.named.get(name)
        return {
            "id": name,
            "object": "model",
            "created": adapter.since if adapter else self.started,
            "owned_by": "llm-adapters",
            "root": self.name,
            "parent": self.name if adapter else None,
            "max_model_len": self.loop.length,
        }

    def adapter(self, model: str) -> str:
        """The adapter that a request's `model` names; "" is the base. Raises Refused."""
        name = "" if model == self.name else model
        if (name or not model) and name not in self.loop.shelf.named:
            raise Refused("model_not_found", f"there is no model {model!r:.100}: see /v1/models")
        return name

    # ---- answers

    async def answer(self, request: Request, kind: type[Asked]) -> Response:
        wanted = asked(kind, await self.body(request))
        self.adapter(wanted.model)
        request.state.model = wanted.model
        # A template or a long text may take a while: not in the thread that all clients share.
        questions = await asyncio.to_thread(self.questions, wanted)
        prompt_tokens = sum(len(question.ids) for question in questions[:: wanted.n])
        self.loop.metrics.prompt_tokens[wanted.model] += prompt_tokens
        reply = Reply(wanted, self.loop.tokenizer, prompt_tokens)
        pieces = Pieces(self.loop, questions, self.seconds)
        if wanted.stream:
            return Stream(events(reply, pieces), pieces.cancel, self.seconds)
        choices: list[list[Piece]] = [[] for _ in questions]

        async def collect() -> None:
            async for index, piece in pieces:
                choices[index].append(piece)

        try:
            await unless_gone(collect(), request.receive)
        finally:
            pieces.cancel()
        return JSONResponse(reply.whole(choices))

    def questions(self, wanted: Asked) -> list[Question]:
        """One for each choice. Raises UserError, Refused and Problem."""
        loop, adapter = self.loop, self.adapter(wanted.model)
        if isinstance(wanted, Chat):
            prompts = [loop.prompt(adapter, wanted.texts())]
        else:
            prompts = wanted.prompts(loop.tokenizer)
            check_ids(prompts, loop.model.input_embedding.in_features)
        sampling, seed, questions = wanted.sampling(), wanted.first_seed(), []
        for ids in prompts:
            room = loop.room(Question(ids, 1, adapter))
            if room < 1 or (wanted.max_tokens or 0) > room:
                asked_for = f"{len(ids)} tokens of the prompt and {wanted.limit or 1} new ones"
                said = f"{asked_for}: there is room for {room + len(ids)}"
                raise Problem(400, said, "context_length_exceeded")
            limit = min(wanted.limit or room, room)
            for _ in range(wanted.n):
                question = Question(ids, limit, adapter, sampling, seed + len(questions))
                questions.append(replace(question, stops=wanted.stops, logprobs=wanted.likely))
        return questions

    async def body(self, request: Request):
        return await self.guard.read(request.stream(), request.headers.get("content-length"))

    # ---- adapters

    async def load(self, request: Request) -> Response:
        wanted = adapter_request(await self.body(request), with_path=True)
        if self.adapter_dir is None:
            raise Problem(403, "start the server with --adapter-dir FOLDER to load adapters")
        folder = (self.adapter_dir / wanted["lora_path"]).resolve()
        if not folder.is_relative_to(self.adapter_dir.resolve()) or not folder.is_dir():
            raise Problem(404, "lora_path is no folder below --adapter-dir", "path_not_found")
        name = wanted["lora_name"]
        if name == self.name:
            raise Problem(400, f"{name!r} is the base model's name")
        await asyncio.to_thread(self.loop.load, name, folder)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = adapter_request(await self.body(request), with_path=False)["lora_name"]
        await asyncio.to_thread(self.loop.unload, name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def failed(wrong: Exception) -> Response:
    """The answer to a request that raised."""
    if isinstance(wrong, ClientDisconnect):
        return Response(status_code=GONE)
    if isinstance(wrong, Refused):
        status = STATUS[wrong.code]
        kind = "invalid_request_error" if status == 404 else "server_error"
        wrong = Problem(status, str(wrong), wrong.code, kind)
    elif isinstance(wrong, UserError):
        wrong = Problem(400, str(wrong))
    elif not isinstance(wrong, Problem):
        print(f"a request failed: {type(wrong).__name__}: {wrong}"[:1000], file=sys.stderr)
        wrong = Problem(500, "an error of the server; its log says more", None, "server_error")
    headers = {"Retry-After": "1"} if wrong.status == 503 else {}
    return JSONResponse(wrong.table(), wrong.status, headers)


async def no_route(request: Request, wrong: Exception) -> Response:
    """A path or a method that is not here."""
    said = f"{request.method} {request.url.path[:100]}: {wrong.detail}"
    return JSONResponse(error(said, "invalid_request_error"), wrong.status_code)
