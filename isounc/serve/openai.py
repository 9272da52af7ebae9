"""OpenAI's endpoints: answers that the model writes, with one more object, `uncertainty`."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse

from isounc.llm.answers.rendering import Given
from isounc.serve.schemas import ChatCompletionRequest, CompletionRequest
from isounc.serve.service import Judged, Refused, Service, tokens_of, usage, within
from isounc.serve.work import Written
from isounc.serve.writing import REPLACEMENT

_DONE = "data: [DONE]\n\n"


class _Wanted(NamedTuple):
    """What a request of either kind comes down to."""

    kind: str
    """`chat.completion` or `text_completion`."""
    identity: str
    """Id of the answer."""
    created: int
    """Seconds since 1970."""
    logprobs: bool
    """Whether log probabilities are wanted."""
    usage: bool
    """Whether a stream ends with the numbers of tokens."""


def router(service: Service) -> APIRouter:
    """The endpoints of a service."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [await model(service.model.name)]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        service.check_model(name)
        served = service.model
        return {
            "id": served.name, "object": "model", "created": service.created,
            "owned_by": served.source, "sha256": served.sha256,
            "context_length": service.engine.max_tokens,
        }  # fmt: skip

    @routes.post("/v1/chat/completions")
    async def chat_completions(request: ChatCompletionRequest) -> Response:
        """Continue a conversation."""
        if request.max_tokens and request.max_completion_tokens:
            raise Refused(
                400,
                "max_tokens must be left out where max_completion_tokens is given",
                "max_tokens",
            )
        service.check_model(request.model)
        messages, deadline = [message.pair() for message in request.messages], service.deadline()
        given = await within(service.given(messages, None), deadline)
        wanted = _wanted("chat.completion", bool(request.logprobs), request.wants_usage)
        most = request.max_completion_tokens or request.max_tokens
        return await _answer(service, given, request, most, wanted, deadline)

    @routes.post("/v1/completions")
    async def completions(request: CompletionRequest) -> Response:
        """Continue a text."""
        service.check_model(request.model)
        deadline = service.deadline()
        given = await within(service.given(None, request.prompt), deadline)
        logprobs = request.logprobs is not None
        wanted = _wanted("text_completion", logprobs, request.wants_usage)
        return await _answer(service, given, request, request.max_tokens, wanted, deadline)

    return routes


def _wanted(kind: str, logprobs: bool, usage: bool) -> _Wanted:
    prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
    return _Wanted(kind, f"{prefix}-{secrets.token_hex(12)}", int(time.time()), logprobs, usage)


async def _answer(
    service: Service,
    given: Given,
    request: Any,
    most: int | None,
    wanted: _Wanted,
    deadline: float,
) -> Response:
    steps = service.written(
        given, max_tokens=most, temperature=request.temperature, top_p=request.top_p,
        stop=request.stops, seed=request.seed,
    )  # fmt: skip
    # What is refused is refused before the first byte of a stream.
    first = await within(anext(steps), deadline)
    if request.stream:
        events = _events(service, given, steps, first, wanted, deadline)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def to_the_end() -> tuple[Written, Judged | None]:
        written = first
        while written.finish is None:
            written = await anext(steps)
        return written, await _judged(service, given, written, wanted.identity)

    async with contextlib.aclosing(steps):
        written, judged = await within(to_the_end(), deadline)
    choice = _choice(service, wanted, written, 0, written.text, whole=True)
    body = _body(service, wanted, wanted.kind, [choice], judged)
    body["usage"] = usage(len(given.ids), len(written.tokens))
    return JSONResponse(body)


async def _events(
    service: Service,
    given: Given,
    steps: AsyncGenerator[Written],
    written: Written,
    wanted: _Wanted,
    deadline: float,
) -> AsyncIterator[str]:
    """Server-sent events of an answer; the verdict is in the last one with a choice."""
    kind = "chat.completion.chunk" if wanted.kind == "chat.completion" else wanted.kind
    sent, num_sent, is_first = "", 0, True
    try:
        # A client that leaves ends this generator, and its place in the engine is free.
        async with contextlib.aclosing(steps):
            while True:
                new = written.text[len(sent) :]
                if new or written.finish:
                    upto = written.num_text_tokens
                    part = _choice(
                        service, wanted, written, num_sent, new, upto=upto, first=is_first
                    )
                    part["finish_reason"] = None
                    sent, num_sent, is_first = written.text, max(upto, num_sent), False
                    yield _event(_body(service, wanted, kind, [part], None))
                if written.finish:
                    break
                written = await within(anext(steps), deadline)
        judged = await within(_judged(service, given, written, wanted.identity), deadline)
        last = _choice(service, wanted, written, num_sent, "", upto=num_sent)
        yield _event(_body(service, wanted, kind, [last], judged))
        if wanted.usage:
            body = _body(service, wanted, kind, [], None)
            body["usage"] = usage(len(given.ids), len(written.tokens))
            yield _event(body)
    except Refused as refused:
        # The status is sent already.
        yield _event(error_body(refused))
    yield _DONE


async def _judged(service: Service, given: Given, written: Written, identity: str) -> Judged | None:
    """The answer as it is judged; None if the model wrote nothing."""
    ids = tokens_of(written)
    if not ids or not written.text.strip():
        return None
    # Its request has waited for a place already.
    return await service.measured(given.ids, ids, written.text, identity, admitted=True)


def _choice(
    service: Service,
    wanted: _Wanted,
    written: Written,
    start: int,
    text: str,
    *,
    upto: int | None = None,
    whole: bool = False,
    first: bool = False,
) -> dict[str, Any]:
    """The one choice: its text, the log probabilities of its tokens from `start`, how it ended."""
    upto = written.num_text_tokens if upto is None else upto
    tokens = [int(i) for i in written.tokens[start:upto]]
    log_probs = [float(x) for x in written.log_probs[start:upto]]
    decode_each = service.model.tokenizer.decode_each
    pieces = decode_each(tokens, is_first=not start) if wanted.logprobs else []
    choice: dict[str, Any] = {"index": 0, "finish_reason": written.finish, "logprobs": None}
    if wanted.kind == "text_completion":
        choice["text"] = text
        if wanted.logprobs:
            choice["logprobs"] = {
                "tokens": pieces, "token_logprobs": log_probs, "top_logprobs": None,
                "text_offset": [
                    len(service.model.tokenizer.decode(written.tokens[: start + k]))
                    for k in range(len(tokens))
                ],
            }  # fmt: skip
        return choice
    if wanted.logprobs:
        choice["logprobs"] = {
            "content": [
                {
                    "token": piece,
                    "logprob": log_p,
                    # Those of a part of a character are not known from its text.
                    "bytes": None if REPLACEMENT in piece else list(piece.encode()),
                    "top_logprobs": [],
                }
                for piece, log_p in zip(pieces, log_probs, strict=True)
            ],
            "refusal": None,
        }
    if whole:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["delta"] = ({"role": "assistant"} if first else {}) | (
            {"content": text} if text else {}
        )
    return choice


def _body(
    service: Service,
    wanted: _Wanted,
    kind: str,
    choices: list[dict[str, Any]],
    judged: Judged | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": wanted.identity, "object": kind, "created": wanted.created,
        "model": service.model.name, "choices": choices,
    }  # fmt: skip
    if choices and choices[0]["finish_reason"]:
        body["uncertainty"] = judged.uncertainty if judged else None
    if wanted.usage:
        body["usage"] = None  # as in OpenAI's streams, whose last event has it
    return body


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def error_body(refused: Refused) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {
        "error": {
            "message": str(refused), "type": kind, "param": refused.argument, "code": refused.status
        }
    }  # fmt: skip
