"""The HTTP server: uvicorn with its C parser and loop, a bound on heads, and an end in which nothing is lost.

SIGTERM drains: `/readyz` says 503 while everything is still answered, so that a balancer looks away; then no
connection is accepted, what was begun is finished, and the process exits with 0. Every reply of that time
says that it is the connection's last. A second SIGTERM skips the first part, SIGINT too.
"""

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
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
from serving.listening import Listener
from serving.metrics import Metrics
from serving.siblings import Siblings

SWITCH_SECONDS = 0.0005
"""How long a working thread keeps the interpreter from the waiting event loop; Python has 10 times that."""

_LOOK_SECONDS = 0.2  # between two looks whether the process has to end
_YOUNG_OBJECTS = 50_000  # that are made before a garbage collection looks at them
_KEEP_ALIVE_SECONDS = 75  # balancers keep idle connections for 60, and must be the ones who close them

log = logging.getLogger(__name__)


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
        metrics: What siblings are told.
        ready_seconds: See `DrainConfig`.
        siblings: The processes that listen on the same socket; None: there are no others.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        metrics: Metrics,
        ready_seconds: float,
        siblings: Siblings | None,
    ) -> None:
        super().__init__(config)
        self._admission = admission
        self._metrics = metrics
        self._ready_seconds = ready_seconds
        self._siblings = siblings
        self._listener: Listener | None = None
        self._exit_at: float | None = None
        self._said = False
        self._told_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end; the loop does not end while it looks at a listening socket."""
        try:
            await super().serve(sockets)
        finally:
            if self._listener is not None:
                self._listener.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests from the one socket, and questions of siblings."""
        await super().startup([])
        (listening,) = sockets or []
        tally = None
        if self._siblings is not None:
            tally = self._siblings.tally
            self.servers.append(cast(Any, await self._siblings.listen(self._metrics.exposition)))
        self._listener = Listener(
            listening, self._protocol, lambda: len(self.server_state.connections), tally
        )
        self.servers.append(cast(Any, self._listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and finish what was begun."""
        await super().shutdown(sockets)
        log.info("ended")

    def end_at_last(self, seconds: float) -> None:
        """End the process so long after it was told to, whatever still hangs; call from a daemon thread."""
        while self._told_at is None or time.monotonic() < self._told_at + seconds:
            time.sleep(_LOOK_SECONDS)
        log.error("what was begun did not end in %.0f s; the process ends without it", seconds)
        os._exit(1)

    def _protocol(self) -> CappedProtocol:
        """Make the protocol of a connection, as uvicorn's `startup` does for sockets of its own."""
        made = cast(Callable[..., CappedProtocol], self.config.http_protocol_class)
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on SIGTERM; end at once, by KeyboardInterrupt, on SIGINT."""
        self._admission.draining = True
        self._told_at = self._told_at or time.monotonic()
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
        if self._exit_at is not None and not self._said:
            self._said = True
            log.info(
                "draining: /readyz says 503, and new connections are taken for %.0f s", self._ready_seconds
            )
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        if self._listener is not None:
            self._listener.note()
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


def build_server(app: FastAPI, drain: DrainConfig, trusted_proxies: tuple[str, ...] = ()) -> Server:
    """Return a server for an application of `serving.api.create_app`; its `run` is given one bound socket.

    Args:
        app: What answers.
        drain: How it ends.
        trusted_proxies: Addresses whose `X-Forwarded-For` is believed.
    """
    state = app.state
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(CappedProtocol, state.admission, state.metrics, state.caps)),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=drain.finish_seconds,
    )
    return Server(config, state.admission, state.metrics, drain.ready_seconds, state.siblings)
