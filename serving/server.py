"""The HTTP server: uvicorn with its C parser and loop, a bound on heads, and an end in which nothing is lost.

SIGTERM drains: `/readyz` says 503 while everything is still answered, so that a balancer looks away; then no
connection is accepted, what was begun is finished, and the process exits with 0. A second SIGTERM skips the
first part, SIGINT too.
"""

import signal
import time
from types import FrameType

import httptools  # noqa: F401  uvicorn picks both where they are there; without them it is several times slower
import uvicorn
import uvloop  # noqa: F401
from fastapi import FastAPI
from pydantic import Field
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from features.config import Config
from serving.admission import Admission

MOST_HEAD_BYTES = 262_144
"""A head that has not ended by then ends its connection; what is shorter is refused by `CapsConfig`."""

_REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class DrainConfig(Config):
    """How the server ends on SIGTERM."""

    ready_seconds: float = Field(
        1.0, ge=0, le=600, description="how long /readyz says 503 before connections are refused"
    )
    finish_seconds: int = Field(
        30, ge=1, le=3_600, description="how long requests that were begun may take after that"
    )


class CappedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on URL and headers, which are held in memory until they end."""

    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_REFUSED)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head = False
        super().on_headers_complete()


class Server(uvicorn.Server):
    """uvicorn's server with a gentler SIGTERM.

    Args:
        config: uvicorn's.
        admission: Is told that the server drains.
        ready_seconds: See `DrainConfig`.
    """

    def __init__(self, config: uvicorn.Config, admission: Admission, ready_seconds: float) -> None:
        super().__init__(config)
        self._admission = admission
        self._ready_seconds = ready_seconds
        self._exit_at: float | None = None

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
        http=CappedProtocol,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=drain.finish_seconds,
    )
    return Server(config, app.state.admission, drain.ready_seconds)
