"""Every refusal of the HTTP API in one JSON shape."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serving.batching import BusyError
from serving.metrics import Metrics
from serving.milvus_collection import IndexUnavailableError
from serving.mistakes import mistake, printable
from serving.queries import QueryError

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


class NotReadyError(Exception):
    """No checked bundle is loaded yet."""


def error_response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return `{"error": {"code", "message"}}`; the message becomes one line."""
    line = printable(" ".join(message.split())[:500])
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

    @app.exception_handler(IndexUnavailableError)
    async def index_unavailable(_: Request, error: IndexUnavailableError) -> JSONResponse:
        return refuse(503, "index_unavailable", str(error), {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refuse(422, "invalid_request", mistake(error.errors()[0], _body_model(request)))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        return refuse(error.status_code, code, str(error.detail), dict(error.headers or {}))


def _body_model(request: Request) -> type[BaseModel] | None:
    """Return what the body of a request should have been."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = body.field_info.annotation if body is not None else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None
