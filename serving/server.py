"""The HTTP server: uvicorn with its C parser and loop, a bound on heads, and an end in which nothing is lost.

SIGTERM drains: `/readyz` says 503 while everything is still answered, so that a balancer looks away; then no
connection is accepted, what was begun is finished, and the process exits with 0. A second SIGTERM skips the
first part, SIGINT too.
"""

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import httptools  # noqa: F401  uvicorn picks both where they are there; without them it is several times slower
import uvicorn
import uvloop  # noqa: F401
from fastapi import FastAPI
from pydantic import Field
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from features.config import Config
from serving.admission import Admission, is_uncounted
from serving.metrics import Metrics
from serving.siblings import Siblings

SWITCH_SECONDS = 0.0005
"""How long a working thread keeps the interpreter from the waiting event loop; Python has 10 times that."""

MOST_HEAD_BYTES = 262_144
"""A head that has not ended by then ends its connection; what is shorter is refused by `CapsConfig`."""

_KEEP_ALIVE_SECONDS = 75  # balancers keep idle connections for 60, and must be the ones who close them
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_OVERLOADED_BODY = (
    b'{"error":{"code":"overloaded","message":"as many requests as can be are being answered; try again"}}'
)
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_OVERLOADED_BODY), _OVERLOADED_BODY)
)


class DrainConfig(Config):
    """How the server ends on SIGTERM."""

    ready_seconds: float = Field(
        1.0, ge=0, le=600, description="how long /readyz says 503 before connections are refused"
    )
    finish_seconds: int = Field(
        30, ge=1, le=3_600, description="how long requests that were begun may take after that"
    )


class CappedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds: on heads, which are held until they end, and on requests under way.

    A request too many is refused here, for a small part of the price of an answer: at a multiple of what can
    be answered, nothing but refusing would be done otherwise.

    Args:
        admission: How many requests may be under way.
        metrics: Where refusals are counted.
        arguments: uvicorn's.
    """

    def __init__(self, admission: Admission, metrics: Metrics, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._admission = admission
        self._metrics = metrics
        self._in_head = True
        self._head_bytes = 0
        self._shedding = False

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers, which follow a chunked body without end, are not kept."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse the request where there are too many, else begin to answer it."""
        self._in_head = False
        if self._is_one_too_many():
            self._shedding = True
            self._admission.refuse()
            self._metrics.refused("overloaded")
            self.transport.write(_OVERLOADED)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass the body on, but not that of a refused request."""
        if not self._shedding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        if not self._shedding:
            super().on_message_complete()
            return
        self._shedding = False
        if self.parser.should_keep_alive():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.close()

    def _is_one_too_many(self) -> bool:
        if len(self.tasks) - self._admission.reading < self._admission.limit:
            return False
        replies_are_due = self.cycle is not None and not self.cycle.response_complete
        return not replies_are_due and not is_uncounted(self.url.partition(b"?")[0].decode("latin-1"))


class Server(uvicorn.Server):
    """uvicorn's server with a gentler SIGTERM.

    Args:
        config: uvicorn's.
        admission: Is told that the server drains.
        ready_seconds: See `DrainConfig`.
        listen_privately: Begins to answer siblings, where there are any.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        ready_seconds: float,
        listen_privately: Callable[[], Awaitable[asyncio.AbstractServer]] | None = None,
    ) -> None:
        super().__init__(config)
        self._admission = admission
        self._ready_seconds = ready_seconds
        self._listen_privately = listen_privately
        self._exit_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and questions of siblings."""
        await super().startup(sockets)
        if self._listen_privately is not None:
            self.servers.append(cast(Any, await self._listen_privately()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on SIGTERM; end at once, by KeyboardInterrupt, on SIGINT."""
        self._admission.draining = True
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif self._exit_at is None:
            self._exit_at = time.monotonic() + self._ready_seconds
        else:
            self._exit_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Look whether it is time to end."""
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)


def spare_collector() -> None:
    """Keep what is loaded out of Python's garbage collections, which would halt every request to walk it.

    One over a bundle of 100,000 documents takes about 0.2 s (benchmarks/serving.py: p99 of 64 callers).
    What an earlier bundle left in cycles is collected first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def build_server(
    app: FastAPI, drain: DrainConfig, trusted_proxies: tuple[str, ...] = (), port: int = 0
) -> Server:
    """Return a server for an application of `serving.api.create_app`.

    Args:
        app: What answers.
        drain: How it ends.
        trusted_proxies: Addresses whose `X-Forwarded-For` is believed.
        port: Loopback port where no socket is given to `run`.
    """
    config = uvicorn.Config(
        app,
        port=port,
        http=cast(Any, partial(CappedProtocol, app.state.admission, app.state.metrics)),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=drain.finish_seconds,
    )
    siblings: Siblings | None = app.state.siblings
    listen = None if siblings is None else partial(siblings.listen, app.state.metrics.exposition)
    return Server(config, app.state.admission, drain.ready_seconds, listen)
