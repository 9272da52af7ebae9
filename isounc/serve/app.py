"""The web application: endpoints of its own, OpenAI's, LiteLLM's, a page, and errors in one form."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from isounc.serve import guardrail, openai
from isounc.serve.gate import OPEN, RETRY_SECONDS, Gate
from isounc.serve.openai import error_body
from isounc.serve.schemas import CheckRequest, FeedbackRequest
from isounc.serve.service import Refused, Service, within

_PAGE = {"": ("index.html", "text/html"), "page.js": ("page.js", "text/javascript"),
         "page.css": ("page.css", "text/css")}  # fmt: skip
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(service: Service, *, token: str = "") -> Callable[..., Awaitable[None]]:
    """The ASGI application of a service, which needs no network of its own.

    Parameters
    ----------
    service
        The model with its engine, which is started and ended by whoever made it.
    token
        The bearer token that clients must give; empty means none.
    """
    from isounc import __version__

    app = FastAPI(
        title="isounc serve", version=__version__, docs_url=None, redoc_url=None,
        description="Answers of a language model, their uncertainty, and a guard's decision.",
    )  # fmt: skip
    app.include_router(openai.router(service))
    app.include_router(guardrail.router(service))
    _own_endpoints(app, service)
    _pages(app)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)
    # Not those of app.routes, where the routers are each one entry.
    endpoints = frozenset(app.openapi()["paths"])
    return Gate(
        app, metrics=service.metrics, token=token, max_bytes=service.settings.max_bytes,
        seconds=service.settings.seconds, endpoints=endpoints | frozenset(OPEN),
    )  # fmt: skip


def _own_endpoints(app: FastAPI, service: Service) -> None:
    @app.post("/v1/checks")
    async def checks(request: CheckRequest) -> dict[str, Any]:
        """Measure an answer that somebody gave."""
        service.check_model(request.model)
        messages = [m.pair() for m in request.messages] if request.messages else None
        deadline = service.deadline()
        given = await within(service.given(messages, request.prompt), deadline)
        judged = await within(service.check(given, request.answer), deadline)
        return {
            "id": judged.identity,
            "object": "check",
            "model": service.model.name,
            **judged.uncertainty,
            "usage": judged.usage,
        }

    @app.post("/v1/feedback")
    def feedback(request: FeedbackRequest) -> dict[str, Any]:
        """Say what an answer turned out to be."""
        state = service.add_feedback(request.id, request.correct)
        return {"id": request.id, "object": "feedback", **state.to_json()}

    @app.get("/v1/guard")
    async def certificate() -> dict[str, Any]:
        """The guard's certificate."""
        guard = service.judge.guard
        if guard is None:
            raise Refused(404, "the service was started without --guard")
        return {
            "object": "guard",
            "certificate": guard.certificate.to_json(),
            "sha256": service.judge.certificate,
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process is well."""
        if service.engine.failure:
            # This path is open to everybody, and the error might quote somebody's text.
            name = type(service.engine.failure).__name__
            raise Refused(503, f"the model's thread has ended with {name}")
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether requests are answered: all programs are compiled."""
        await healthz()
        if not service.engine.is_ready:
            raise Refused(503, "the programs are being compiled")
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        service.metrics.waiting.set(service.engine.num_waiting)
        service.metrics.ready.set(float(service.engine.is_ready))
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _pages(app: FastAPI) -> None:
    folder = resources.files("isounc.serve") / "page"
    for path, (name, kind) in _PAGE.items():
        content = (folder / name).read_bytes()

        def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=_SAFE)

        app.add_api_route(f"/{path}", page, methods=["GET"], include_in_schema=False)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.status in (429, 503) else None
    return JSONResponse(error_body(error), error.status, headers)


def _invalid(request: Request, error: Exception) -> Response:
    """One message about the first fault, with the argument's name and what was given."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if not where and isinstance(first.get("input"), bytes):  # which was not read as JSON
        given = request.headers.get("content-type", "none")
        message = f"the header Content-Type must be application/json, got {given:.60}"
        return _refused(request, Refused(400, message, "Content-Type"))
    if not where and first["type"] in ("model_attributes_type", "dict_type", "model_type"):
        message = f"the request must be a JSON object, got {_shown(first.get('input'))}"
        return _refused(request, Refused(400, message))
    if first["type"] == "json_invalid":
        message = (
            f"the request must be JSON, got {first['ctx']['error']} at byte {first['loc'][-1]}"
        )
        return _refused(request, Refused(400, message))
    said = first["msg"].removeprefix("Value error, ")
    message = f"{where}: {said}" if where else said
    if where and first["type"] != "missing":
        message += f", got {_shown(first.get('input'))}"
    return _refused(request, Refused(400, message, where or None))


def _shown(value: Any) -> str:
    try:
        return f"{json.dumps(value):.60}"
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"


def _fault(request: Request, error: Exception) -> Response:
    # The gate logs it.
    return _refused(request, Refused(500, "this is a fault of the service; its log says more"))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no endpoint {request.url.path:.100}",
        405: f"{request.url.path:.100} does not take {request.method}",
        400: "the request must be JSON in UTF-8, neither nested deeply nor with endless numbers",
    }
    return _refused(
        request, Refused(error.status_code, said.get(error.status_code, str(error.detail)))
    )
