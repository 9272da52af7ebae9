"""What stands before the endpoints: the token, the size of a request, counts and times."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from isounc.serve.monitoring import Metrics
from isounc.serve.openai import error_body
from isounc.serve.service import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/page.js", "/page.css", "/healthz", "/readyz")
"""Paths that need no token: they say nothing about anybody's text."""
LOG = logging.getLogger("isounc.serve")
LEFT = 499
"""Status by which requests are counted whose client has left; nobody is sent it."""
RETRY_SECONDS = 1
"""What a client is told to wait when too many requests do."""


class Gate:
    """ASGI middleware: refuses what must not come in, and counts what did.

    Parameters
    ----------
    app
        The endpoints.
    metrics
        Where requests are counted.
    token
        The bearer token that clients must give; empty means none.
    max_bytes
        Bytes of the largest request.
    seconds
        Seconds that a client may take to send one.
    endpoints
        Paths that are counted by name; any other is counted as `other`, so that strangers cannot
        fill the memory with names.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        token: str,
        max_bytes: int,
        seconds: float,
        endpoints: frozenset[str],
    ):
        self._app, self._metrics, self._token = app, metrics, token.encode()
        self._max_bytes, self._seconds, self._endpoints = max_bytes, seconds, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, is_whole = time.perf_counter(), LEFT, False

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            body = await self._body(receive, headers)
            if body is not None:
                await self._answer(scope, body, receive, noting, lambda: is_whole)
        except Refused as refused:
            await respond(noting, refused)
        except Exception as error:
            # Without the error's message, which might quote what a user wrote.
            where = "".join(traceback.format_tb(error.__traceback__))
            LOG.error("a request ended with %s, a fault of isounc\n%s", type(error).__name__, where)
        finally:
            name = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.requests.labels(name, str(status)).inc()
            self._metrics.seconds.labels(name).observe(time.perf_counter() - begun)

    async def _answer(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, is_whole: Callable[[], bool]
    ) -> None:
        """Let the endpoints answer; stop them when the client leaves before it has its answer."""
        task, left, is_read = asyncio.current_task(), asyncio.Event(), False
        assert task is not None

        async def again() -> MutableMapping[str, Any]:
            nonlocal is_read
            if is_read:
                await left.wait()
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not is_whole():
                left.set()
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            await self._app(scope, again, send)
        except asyncio.CancelledError:
            if not left.is_set() or task.uncancel():
                raise
        finally:
            watcher.cancel()

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._token and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # LiteLLM's guardrails send their key in a header of its own.
            given = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self._token):
                what = "another" if given else "none"
                raise Refused(401, f"a bearer token must be given, got {what}", "Authorization")

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
        """The whole request, unless it is too large or comes too slowly; None if the client leaves."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large(f"{int(declared)} bytes")
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read(receive)
        except TimeoutError:
            raise Refused(408, "the request took longer than one may (--seconds)") from None

    async def _read(self, receive: Receive) -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes} bytes")
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self, given: str) -> Refused:
        return Refused(413, f"a request must have at most {self._max_bytes} bytes, got {given}")


async def respond(send: Send, refused: Refused) -> None:
    """Send an error by itself."""
    headers = [(b"content-type", b"application/json")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 413):  # the rest of the request is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    body = json.dumps(error_body(refused)).encode()
    await send({"type": "http.response.body", "body": body})
