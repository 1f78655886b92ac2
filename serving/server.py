"""The HTTP server: uvicorn with its C parser and loop, a bound on heads, and an end in which nothing is lost.

SIGTERM drains: `/readyz` says 503 while everything is still answered, so that a balancer looks away; then no
connection is accepted, what was begun is finished, and the process exits with 0. Every reply of that time
says that it is the connection's last. A second SIGTERM skips the first part, SIGINT too.
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

import uvicorn
import uvloop  # noqa: F401  uvicorn picks it where it is there
from fastapi import FastAPI
from pydantic import Field

from features.config import Config
from serving.admission import Admission
from serving.connection import CappedProtocol
from serving.siblings import Siblings

SWITCH_SECONDS = 0.0005
"""How long a working thread keeps the interpreter from the waiting event loop; Python has 10 times that."""

_YOUNG_OBJECTS = 50_000  # that are made before a garbage collection looks at them
_KEEP_ALIVE_SECONDS = 75  # balancers keep idle connections for 60, and must be the ones who close them


class DrainConfig(Config):
    """How the server ends on SIGTERM."""

    ready_seconds: float = Field(
        1.0, ge=0, le=600, description="how long /readyz says 503 before connections are refused"
    )
    finish_seconds: int = Field(
        30, ge=1, le=3_600, description="how long requests that were begun may take after that"
    )


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
        for connection in list(self.server_state.connections):
            cast(CappedProtocol, connection).end_after_reply()
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
    What an earlier bundle left in cycles is collected first. New objects are looked through by the 50,000,
    not by the 700, which a few requests make: 9% of a process's throughput with a feature tower.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


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
        http=cast(Any, partial(CappedProtocol, app.state.admission, app.state.metrics, app.state.caps)),
        ws="none",
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
