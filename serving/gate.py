"""The way into the application: size, key, rate, body and admission, in this order, before any parsing.

Refusing costs a small part of answering, which is what keeps a server in time under any load.
"""

import asyncio
from dataclasses import dataclass

from pydantic import Field
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.config import Config
from serving.admission import TIMEOUT_HEADER, Admission, TimeoutHeaderError, is_uncounted
from serving.hosts import Hosts
from serving.keys import Keys, need, shown_key
from serving.metrics import Metrics
from serving.query_log import WANTED
from serving.rates import Rates
from serving.refusals import error_response


class CapsConfig(Config):
    """The largest request that is read, and how long a client may take over its part."""

    max_body_bytes: int = Field(1_000_000, ge=1_000, description="largest request body")
    max_head_bytes: int = Field(16_384, ge=1_024, description="largest sum of URL and headers")
    head_seconds: float = Field(10.0, gt=0, le=3_600, description="longest that a head may take to arrive")
    body_seconds: float = Field(10.0, gt=0, le=3_600, description="longest that a body may take to arrive")
    reply_seconds: float = Field(
        30.0,
        gt=0,
        le=3_600,
        description="longest that a client may take to read what was sent to it; then its connection is cut",
    )


@dataclass(frozen=True)
class Rules:
    """What the gate goes by."""

    caps: CapsConfig
    keys: Keys
    rates: Rates
    admission: Admission
    metrics: Metrics
    hosts: Hosts


class Gate:
    """Refuses what may not, or cannot now, be answered; passes the rest on with its body read.

    Args:
        app: What answers.
        rules: What to go by.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules
        self._held = 0  # bytes of bodies that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = dict(scope["headers"])
        refusal = (
            self._too_large(scope, head) or self._not_allowed(scope, head) or self._not_ready(scope, head)
        )
        if refusal is None:
            body = await self._body(receive)
            if body is None:
                return
            if isinstance(body, bytes):
                refusal = await self._admitted(scope, replayed(body, receive), send)
            else:
                refusal = body
        if refusal is not None:
            await refusal(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        if is_uncounted(scope["path"]):
            await self.app(scope, receive, send)
            return None
        admission = self.rules.admission
        if not admission.enter():
            return self._refuse(
                503, "overloaded", "as many requests as can be are being answered; try again", 1
            )
        try:
            await self.app(scope, receive, send)
        finally:
            admission.leave()
        return None

    def _too_large(self, scope: Scope, head: dict[bytes, bytes]) -> Response | None:
        caps = self.rules.caps
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > caps.max_head_bytes:
            return self._refuse(
                431, "head_too_large", f"URL and headers have more than {caps.max_head_bytes} bytes"
            )
        declared = head.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > caps.max_body_bytes:
            return self._body_too_large()
        return None

    def _not_allowed(self, scope: Scope, head: dict[bytes, bytes]) -> Response | None:
        needed = need(scope["method"], scope["path"])
        if needed == "nothing":
            return None
        keys = self.rules.keys
        key = keys.find(scope["headers"]) if len(keys) else None
        wait = self.rules.rates.wait(key.name if key else None, (scope.get("client") or ("",))[0])
        if wait:
            return self._refuse(429, "rate_limited", f"too many requests; try again in {wait} s", wait)
        if not len(keys) and not self.rules.hosts.has(head.get(b"host", b"localhost")):
            text = (
                "without API keys this server answers to localhost only; set keys, or name it in serve.hosts"
            )
            return self._refuse(421, "unknown_host", text)
        if needed == "admin key" and not keys.has_admin:
            text = "administration by HTTP needs an admin key, and this server has none"
            return self._refuse(403, "no_admin_key", text)
        if len(keys) and key is None:
            text = (
                "this API key is not known here; check it"
                if shown_key(scope["headers"])
                else "this needs an API key; send it as `Authorization: Bearer KEY`"
            )
            return self._refuse(401, "unauthorized", text, challenge=True)
        if key is not None and key.role == "read" and needed != "read":
            return self._refuse(403, "forbidden", "this needs an admin key; yours may only read")
        return None

    def _not_ready(self, scope: Scope, head: dict[bytes, bytes]) -> Response | None:
        WANTED.set(head.get(b"x-query-log") != b"off")
        admission = self.rules.admission
        if admission.draining and scope["path"] == "/readyz":
            return self._refuse(503, "draining", "this server is shutting down", 1)
        try:
            admission.set_deadline(head.get(TIMEOUT_HEADER))
        except TimeoutHeaderError as error:
            return self._refuse(422, "invalid_timeout", str(error))
        return None

    async def _body(self, receive: Receive) -> bytes | Response | None:
        """Return a request's body, or why it is refused; None where the client is gone."""
        caps = self.rules.caps
        most_held = caps.max_body_bytes * self.rules.admission.config.max_requests
        parts: list[bytes] = []
        size = 0
        self.rules.admission.aside += 1
        try:
            async with asyncio.timeout(caps.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._held += len(parts[-1])
                    if size > caps.max_body_bytes:
                        return self._body_too_large()
                    if self._held > most_held:
                        return self._refuse(503, "overloaded", "too many large bodies arrive at once", 1)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return self._refuse(
                408, "body_too_slow", f"the body took more than {caps.body_seconds:g} s", close=True
            )
        finally:
            self._held -= size
            self.rules.admission.aside -= 1

    def _body_too_large(self) -> Response:
        text = f"the request body is larger than {self.rules.caps.max_body_bytes} bytes"
        return self._refuse(413, "body_too_large", text, close=True)

    def _refuse(
        self,
        status: int,
        code: str,
        message: str,
        retry_after: int | None = None,
        *,
        challenge: bool = False,
        close: bool = False,
    ) -> Response:
        self.rules.metrics.refused(code)
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        headers |= {"WWW-Authenticate": "Bearer"} if challenge else {}
        headers |= {"Connection": "close"} if close else {}
        return error_response(status, code, message, headers)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
