"""Every refusal of the HTTP API in one JSON shape."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.batching import BusyError
from serving.metrics import Metrics
from serving.queries import QueryError
from serving.wire import SearchRequest

_EXAMPLE = '{"text": "red running shoes", "k": 10}'
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


class NotReadyError(Exception):
    """No checked bundle is loaded yet."""


def error_response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return `{"error": {"code", "message"}}`; the message becomes one line."""
    line = " ".join(message.split())[:500]
    return JSONResponse({"error": {"code": code, "message": line}}, status, headers)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Make an application refuse in the one shape, and count its refusals."""

    def refuse(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.refused(code)
        return error_response(status, code, message, headers)

    @app.exception_handler(QueryError)
    async def query(_: Request, error: QueryError) -> JSONResponse:
        return refuse(error.status, error.code, str(error))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return refuse(503, error.code, str(error), {"Retry-After": "1"})

    @app.exception_handler(NotReadyError)
    async def not_ready(_: Request, error: NotReadyError) -> JSONResponse:
        return refuse(503, "not_ready", str(error), {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return refuse(422, "invalid_request", _mistake(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        return refuse(error.status_code, code, str(error.detail), dict(error.headers or {}))


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
