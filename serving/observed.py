"""The outermost layer: every reply is timed, traced and safe for a browser, and a defect is a plain 500."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.refusals import error_response
from serving.trace import PRESENT, trace_of

log = logging.getLogger(__name__)

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' https:; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_CLIENT_GONE = 499


class Observed:
    """Measures each request, carries its trace on, and answers where the application fails.

    Args:
        app: What answers.
        metrics: Where it is counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and extend the reply's headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        trace = trace_of(next((value for name, value in scope["headers"] if name == b"traceparent"), None))
        PRESENT.set(trace)
        status = _CLIENT_GONE

        async def extended(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                carried = (b"traceparent", trace.header.encode())
                message["headers"] = [*message.get("headers", []), *_HEADERS, carried]
            await send(message)

        try:
            await self.app(scope, receive, extended)
        except Exception as error:
            log.error("%s %s failed", scope["method"], _route(scope), exc_info=error)
            if status != _CLIENT_GONE:  # half a reply is out already
                raise
            text = "this is a defect of the server; its log has the details"
            await error_response(500, "internal", text)(scope, receive, extended)
        finally:
            self.metrics.request_done(_route(scope), status, time.perf_counter() - started)


def _route(scope: Scope) -> str:
    """Return a request's route with its parameters' names in place of what was asked; few distinct ones."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path or "none"
