"""Every refusal of the HTTP API in one JSON shape, the cap on request bodies, and headers for the page."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.retriever import QueryError, UnknownDocumentError
from serving.wire import SearchRequest

log = logging.getLogger(__name__)

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_EXAMPLE = '{"text": "red running shoes", "k": 10}'
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class NotReadyError(Exception):
    """No checked bundle is loaded yet."""


def error_response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return `{"error": {"code", "message"}}`; the message becomes one line."""
    line = " ".join(message.split())[:500]
    return JSONResponse({"error": {"code": code, "message": line}}, status, headers)


def install(app: FastAPI, max_body_bytes: int) -> None:
    """Make an application refuse in the one shape, cap bodies and send the page's headers."""
    app.add_middleware(BodyCap, max_bytes=max_body_bytes)
    app.add_middleware(SafeHeaders)

    @app.exception_handler(QueryError)
    async def query(_: Request, error: QueryError) -> JSONResponse:
        return error_response(404 if isinstance(error, UnknownDocumentError) else 422, error.code, str(error))

    @app.exception_handler(NotReadyError)
    async def not_ready(_: Request, error: NotReadyError) -> JSONResponse:
        return error_response(503, "not_ready", str(error), {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, "invalid_request", _mistake(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        return error_response(error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(500, "internal", "this is a defect of the server; its log has the details")


def _mistake(first: Mapping[str, Any]) -> str:
    """Say what is wrong with a request, and what to send instead."""
    place = ".".join(str(part)[:60] for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        return "the body is not JSON; send an object such as " + _EXAMPLE
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 2:
        return f"{place}: unknown field; allowed: {', '.join(SearchRequest.model_fields)}"
    if not place:
        return f"the body is no JSON object; send such as {_EXAMPLE} with 'content-type: application/json'"
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"


class BodyCap:
    """Answers 413 as soon as a body is longer than `max_bytes`, declared or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        too_long = _declared_length(scope) > self.max_bytes
        while more and not too_long:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            too_long = len(body) > self.max_bytes
        if too_long:
            text = f"the request body is larger than {self.max_bytes} bytes"
            refusal = error_response(413, "body_too_large", text, {"Connection": "close"})
            await refusal(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


class SafeHeaders:
    """Adds headers that keep a browser from running anything that is not ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and extend the reply's headers."""

        async def extended(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, extended)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
