"""The HTTP API over a store's champion, and the page.

Every request takes the served bundle once and uses it to the end, so no reply mixes versions. Searches run
in a thread pool of `ServeConfig.concurrency`; `/livez` never waits for them.
"""

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from pydantic import Field

from features.config import Config
from features.errors import ConfigError
from serving import refusals
from serving.follow import Follower
from serving.retriever import QueryLimits
from serving.routes import PAGE, router
from serving.store import Store

log = logging.getLogger(__name__)


class ServeConfig(Config):
    """Where the API listens and what it accepts."""

    host: str = Field("127.0.0.1", description="address to listen on; loopback only")
    port: int = Field(8080, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="where the index is searched")
    poll_seconds: float = Field(1.0, gt=0, le=3_600, description="time between two looks at the champion")
    concurrency: int = Field(4, ge=1, le=256, description="searches that run at the same time")
    threads: int = Field(1, ge=1, le=256, description="torch threads that one search uses")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="largest request body")
    limits: QueryLimits = Field(default_factory=QueryLimits, description="largest query that is answered")


def create_app(store: Path, config: ServeConfig | None = None) -> FastAPI:
    """Return the application; it begins to follow the store's champion when it is started."""
    settings = config or ServeConfig()
    follower = Follower(Store(store), settings.limits, settings.device, settings.poll_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.concurrency
        follower.start()
        yield
        await anyio.to_thread.run_sync(follower.stop)

    app = FastAPI(
        title="twotower",
        description="Nearest-neighbour retrieval from the store's champion bundle.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.follower = follower
    refusals.install(app, settings.max_body_bytes)
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def serve(store: Path, config: ServeConfig) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: If the host is not loopback, or the address cannot be taken.
    """
    _require_loopback(config.host)
    torch.set_num_threads(config.threads)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error}; choose another port"
        ) from None
    with listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info("page http://%s:%d/ · API documentation http://%s:%d/docs", shown, port, shown, port)
        server = uvicorn.Server(
            uvicorn.Config(create_app(store, config), log_level="warning", access_log=False)
        )
        server.run(sockets=[listener])


def _require_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"host {host!r} is not loopback; there are no API keys yet, so only 127.0.0.1, ::1 or localhost "
            "can be served (put a proxy that authenticates in front)"
        )
