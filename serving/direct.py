"""A short way for the request that is made thousands of times a second: a search in plain JSON.

FastAPI takes longer to find the route, its dependencies and its body than the route takes to answer
(benchmarks/serving.py). Here the same function of the same route gets the same model at once. Whatever is not
plainly such a request, or not a valid one, goes FastAPI's way, which refuses it in words.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.current import served
from serving.gate import replayed
from serving.routes import router, search
from serving.wire import SearchRequest

_PATH = "/v1/search"
_ROUTE = next(route for route in router.routes if getattr(route, "path", None) == _PATH)

Handler = Callable[[Request, Exception], Awaitable[Response]]


class Direct:
    """Answers plain searches and passes everything else on.

    Args:
        app: FastAPI's way; its `receive` gives a whole body at once, as `serving.gate` sees to.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a search, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        asked = _read(body) if _is_json(scope) else None
        if asked is None:
            await self.app(scope, replayed(body, receive), send)
            return
        scope["route"] = _ROUTE
        request = Request(scope, receive)
        try:
            response = await search(request, asked, await served(request))
        except Exception as error:
            response = await _refusal(request, error)
        await response(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    """Return whether the body's type is JSON; where several are given FastAPI goes by the first, too."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value == b"application/json")
    return False


def _read(body: bytes) -> SearchRequest | None:
    """Return a body as FastAPI would read it; None where that would refuse it."""
    try:
        return SearchRequest.model_validate(json.loads(body))
    except (ValueError, RecursionError, ValidationError):
        return None


async def _refusal(request: Request, error: Exception) -> Response:
    """Return what the application's handler makes of an error, or raise it again."""
    handlers: dict[Any, Handler] = request.app.exception_handlers
    for kind in type(error).__mro__:
        if kind in handlers:
            return await handlers[kind](request, error)
    raise error
