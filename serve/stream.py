"""An answer as it comes: from the loop's thread to a client, which may read slowly or go away.

Imported only by functions, as app.py is.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serve.guard import Problem
from serve.loop import Loop
from serve.questions import Answer, Piece, Question
from serve.reply import Reply


class Pieces:
    """The pieces of several answers as they come, (index, Piece). Raises Refused at once, and
    Problem where they take too long or an answer cannot be made."""

    def __init__(self, loop: Loop, questions: list[Question], seconds: float):
        self.loop, self.left = loop, len(questions)
        self.until = time.monotonic() + seconds
        self.queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        asked = [(question, self.deliver(index)) for index, question in enumerate(questions)]
        self.answers: list[Answer] = loop.ask(*asked)

    def deliver(self, index: int) -> Callable[[Piece], None]:
        here = asyncio.get_running_loop()

        def deliver(piece: Piece) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(self.queue.put_nowait, (index, piece))

        return deliver

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        while self.left:
            try:
                async with asyncio.timeout(self.until - time.monotonic()):
                    index, piece = await self.queue.get()
            except TimeoutError:
                raise Problem(504, "the answer took too long", "timeout", "server_error") from None
            if piece.error:
                raise Problem(500, piece.error, None, "server_error")
            self.left -= bool(piece.ended)
            yield index, piece

    def cancel(self) -> None:
        for answer in self.answers:
            self.loop.cancel(answer)


async def events(reply: Reply, pieces: Pieces) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    begun: set[int] = set()
    try:
        async for index, piece in pieces:
            if not (piece.text or piece.ended or piece.scored):
                reply.tokens += piece.tokens  # half of a character, or what may be a stop string
                continue
            yield event(reply.chunk(index, piece, index not in begun))
            begun.add(index)
        if reply.request.stream_options.include_usage:
            yield event(reply.last_chunk())
        yield b"data: [DONE]\n\n"
    except Problem as problem:
        yield event(problem.table())


def event(table: dict) -> bytes:
    return b"data: " + json.dumps(table, ensure_ascii=False).encode() + b"\n\n"


class Stream(Response):
    """Events as they come; `over` is called when they end or the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncIterator[bytes], over: Callable[[], None], seconds: float):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.parts, self.over, self.seconds = parts, over, seconds

    async def __call__(self, scope, receive, send) -> None:
        async def write() -> None:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async for part in self.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                await asyncio.sleep(0)  # a client that has left is noticed
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            async with asyncio.timeout(self.seconds + 5):  # of a reader that does not read
                await unless_gone(write(), receive)
        except (ClientDisconnect, TimeoutError, OSError):
            pass
        finally:
            self.over()


async def unless_gone(work, receive: Callable) -> None:
    """Await some work; raises ClientDisconnect, with the work ended, when the client leaves."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
