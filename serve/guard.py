"""Who may ask, and how much: keys, the names that a browser may reach us by, the size of a body."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from serve.protocol import error

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PATIENCE = 30.0  # seconds for the body to come


class Problem(Exception):
    """A request that is not answered: the HTTP status, and OpenAI's type and code of the error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.status, self.code, self.kind = status, code, kind

    def table(self) -> dict:
        return error(str(self), self.kind, self.code)


@dataclass(frozen=True)
class Guard:
    """host: the address that is listened at. key: what clients must send ("": nothing)."""

    host: str
    key: str = ""
    body: int = 2**20  # bytes

    def check(self, headers: Mapping[str, str], is_open: bool) -> None:
        """Raise Problem for a request that may not be answered. is_open: without a key too.

        A page of another site must not use the browser of somebody here: a name that leads to this
        machine is no name of ours where only this machine may ask (DNS rebinding), and the page
        that asks must be our own.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urlsplit(f"//{host}").hostname
        if self.host in LOOPBACK and name not in LOOPBACK:
            raise Problem(403, f"the host {host[:100]!r} is not served here", "host_not_allowed")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Problem(403, f"pages of {origin[:100]!r} may not ask", "origin_not_allowed")
        if self.key and not is_open:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise Problem(401, "the API key is missing or wrong", "invalid_api_key")

    async def read(self, chunks: AsyncIterator[bytes], length: str | None):
        """The JSON of a body. Raises Problem."""
        too_large = Problem(413, f"the body is larger than {self.body:,} bytes", "body_too_large")
        if length and length.isdigit() and int(length[:20]) > self.body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > self.body:
                        raise too_large
        except TimeoutError:
            raise Problem(408, f"the body took longer than {PATIENCE:.0f} s", "timeout") from None
        try:
            return json.loads(bytes(body))
        except (ValueError, RecursionError) as wrong:
            raise Problem(400, f"the body is not JSON: {wrong}"[:200], "invalid_json") from None
