"""What stands before the endpoints: the token, the size of a request, counts and times."""

from __future__ import annotations

import hmac
import json
import time
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
    endpoints
        Paths that are counted by name; any other is counted as `other`, so that strangers cannot
        fill the memory with names.
    """

    def __init__(
        self, app: App, *, metrics: Metrics, token: str, max_bytes: int, endpoints: frozenset[str]
    ):
        self._app, self._metrics, self._token = app, metrics, token.encode()
        self._max_bytes, self._endpoints = max_bytes, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            body = await self._body(receive, headers)
        except Refused as refused:
            await respond(noting, refused)
        else:
            await self._app(scope, _replayed(body, receive), noting)
        finally:
            name = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.requests.labels(name, str(status)).inc()
            self._metrics.seconds.labels(name).observe(time.perf_counter() - begun)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._token and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # LiteLLM's guardrails send their key in a header of its own.
            given = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self._token):
                what = "another" if given else "none"
                raise Refused(401, f"a bearer token must be given, got {what}", "Authorization")

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """The whole request, unless it is too large; read to its bound at most."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large(f"{int(declared)} bytes")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes} bytes")
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self, given: str) -> Refused:
        return Refused(413, f"a request must have at most {self._max_bytes} bytes, got {given}")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A request that has been read already; then whatever comes after it."""
    sent = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def respond(send: Send, refused: Refused) -> None:
    """Send an error by itself."""
    headers = [(b"content-type", b"application/json")]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    body = json.dumps(error_body(refused)).encode()
    await send({"type": "http.response.body", "body": body})
