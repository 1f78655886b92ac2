"""The HTTP API over a store's champion, and the page.

Every request takes the served bundle once and uses it to the end, so no reply mixes versions. Searches run
in the workers of `serving.batching`, other work in a thread pool; `/livez` never waits for either.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import anyio.to_thread
import torch
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from pydantic import Field, ValidationInfo, field_validator

from features.config import Config
from features.errors import ConfigError
from serving import refusals
from serving.admission import Admission, AdmissionConfig
from serving.batching import Batcher, BatchingConfig
from serving.direct import Direct
from serving.events import events
from serving.follow import Follower
from serving.gate import CapsConfig, Gate, Rules
from serving.hosts import Hosts
from serving.keys import Keys, KeysConfig, require_loopback_or_keys
from serving.metrics import Metrics
from serving.observed import Observed
from serving.operations import operations
from serving.processes import supervise
from serving.query_log import QueryLog, QueryLogConfig
from serving.rates import Rates, RatesConfig
from serving.retriever import QueryLimits
from serving.routes import PAGE, router
from serving.server import SWITCH_SECONDS, DrainConfig, build_server, spare_collector
from serving.shelf import Shelf
from serving.siblings import Siblings
from serving.signing import read_public_key
from serving.store import Store
from serving.waiting import Loads, Places

_CLOSE_SECONDS = 10.0  # for what is written and closed after the last request

log = logging.getLogger(__name__)

_NO_TELEMETRY: TelemetryConfig = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}


class ServeConfig(Config):
    """Where the API listens and what it accepts."""

    host: str = Field(
        "127.0.0.1", description="address to listen on; one that is not loopback needs API keys"
    )
    port: int = Field(8080, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="where the index is searched")
    poll_seconds: float = Field(1.0, gt=0, le=3_600, description="time between two looks at the champion")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="server processes behind the port; each holds the bundle, and memory is so many times "
        "that of one. Threads, batches, the cache of query vectors and the bounds of `admission` and "
        "`batching` are per process; `rates` need one process",
    )
    concurrency: int = Field(
        4,
        ge=1,
        le=256,
        description="other requests than searches that work at once: so many that encode, and so many others",
    )
    threads: int = Field(
        1, ge=1, le=256, description="torch and faiss threads that one batch of searches uses"
    )
    batching: BatchingConfig = Field(default_factory=BatchingConfig, description="searches put together")
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig, description="how much at once")
    caps: CapsConfig = Field(default_factory=CapsConfig, description="largest request that is read")
    keys: KeysConfig = Field(default_factory=KeysConfig, description="who may ask")
    drain: DrainConfig = Field(default_factory=DrainConfig, description="how the server ends")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="addresses of proxies whose X-Forwarded-For says who asks; it is ignored otherwise"
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="names that requests may give as `Host`, besides those of loopback, while there are no "
        "keys, such as the one that a proxy passes on; else a page of any name could read all replies",
    )
    rates: RatesConfig = Field(default_factory=RatesConfig, description="how often one client may ask")
    mlflow: str | None = Field(
        None, description="where MLflow's pages are, so that the page links runs to them"
    )
    trusted_keys: tuple[Path, ...] = Field(
        (),
        description="Ed25519 public keys (PEM), one of which must have signed a bundle; none: any is served",
    )
    query_log: QueryLogConfig = Field(
        default_factory=QueryLogConfig, description="what was asked and shown, for later training"
    )
    limits: QueryLimits = Field(default_factory=QueryLimits, description="largest query that is answered")

    @field_validator("rates")
    @classmethod
    def _counted_in_one_place(cls, rates: RatesConfig, info: ValidationInfo) -> RatesConfig:
        if info.data.get("processes", 1) > 1 and (rates.per_key or rates.per_address):
            raise ValueError(
                "rates are counted in each process, so several would let through more than they say; "
                "set processes: 1, or limit rates in the proxy and set none here"
            )
        return rates


def create_app(store: Path, config: ServeConfig | None = None) -> FastAPI:
    """Return the application; it begins to follow the store's champion when it is started.

    Raises:
        ConfigError: If a key cannot be read.
    """
    settings = config or ServeConfig()
    metrics = Metrics()
    for key in settings.trusted_keys:
        read_public_key(key)
    opened = Store(store, settings.trusted_keys)
    follower = Follower(opened, settings.limits, settings.device, settings.poll_seconds)
    batcher = Batcher(settings.batching, metrics, settings.threads)
    admission = Admission(settings.admission)
    query_log = QueryLog(store / "ubi", settings.query_log, metrics)
    metrics.watch(follower, batcher, admission)

    @asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[None]:
        started.state.loads = Loads(started.state.shelf, admission)
        started.state.encoders = Places(settings.concurrency)
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.concurrency
        query_log.start()
        follower.start()
        yield
        await batcher.close()
        await anyio.to_thread.run_sync(query_log.stop)
        await anyio.to_thread.run_sync(follower.stop)

    app = FastAPI(
        title="twotower",
        description="Nearest-neighbour retrieval from the store's champion bundle.",
        version="1",
        docs_url=None,
        redirect_slashes=False,  # their addresses would begin with whatever host was asked for
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
        lifespan=lifespan,
    )
    app.state.follower, app.state.batcher = follower, batcher
    app.state.shelf = Shelf(follower.store, settings.limits, settings.device)
    app.state.mlflow = settings.mlflow
    app.state.siblings = None
    app.state.metrics, app.state.admission, app.state.query_log = metrics, admission, query_log
    app.state.caps = settings.caps
    refusals.install(app, metrics)
    rules = Rules(
        settings.caps,
        Keys.read(settings.keys),
        Rates(settings.rates),
        admission,
        metrics,
        Hosts((settings.host, *settings.hosts)),
    )
    app.add_middleware(Direct)
    app.add_middleware(Gate, rules=rules)
    app.add_middleware(Observed, metrics=metrics)
    app.include_router(router)
    app.include_router(events)
    app.include_router(operations)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def serve(store: Path, config: ServeConfig, set_up: Callable[[], None] | None = None) -> None:
    """Serve until interrupted.

    Args:
        store: The store's folder.
        config: Where to listen and what to accept.
        set_up: Called first in every process that this one starts, to do there what was done here, such as
            configuring logging; must be picklable.

    Raises:
        ConfigError: If the address is not loopback and there is no key, it cannot be taken, or a process
            could not start.
    """
    require_loopback_or_keys(config.host, Keys.read(config.keys))
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # Python adds the address
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {why}; choose another port"
        ) from None
    with listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info("page http://%s:%d/ · API documentation http://%s:%d/docs", shown, port, shown, port)
        if config.processes == 1:
            _answer(store, config, listener)
        else:
            work = partial(_answer_beside, store, config, listener, set_up)
            supervise(config.processes, work, listener, _end_seconds(config.drain))


def _answer_beside(
    store: Path,
    config: ServeConfig,
    listener: socket.socket,
    set_up: Callable[[], None] | None,
    siblings: Siblings,
) -> None:
    """Answer as one of several processes."""
    if set_up is not None:
        set_up()
    _answer(store, config, listener, siblings)


def _answer(
    store: Path, config: ServeConfig, listener: socket.socket, siblings: Siblings | None = None
) -> None:
    """Answer what comes to the listener until told to end."""
    torch.set_num_threads(config.threads)
    app = create_app(store, config)
    app.state.siblings = siblings
    app.state.follower.after_swap = spare_collector
    if siblings is not None:
        _load_first(app.state.follower, siblings, config.poll_seconds)
    server = build_server(app, config.drain, config.trusted_proxies)
    sys.setswitchinterval(SWITCH_SECONDS)
    longest = _end_seconds(config.drain)
    threading.Thread(target=server.end_at_last, args=(longest,), daemon=True).start()
    server.run(sockets=[listener])


def _end_seconds(drain: DrainConfig) -> float:
    """Return how long the end of a process may take."""
    return drain.ready_seconds + drain.finish_seconds + _CLOSE_SECONDS


def _load_first(follower: Follower, siblings: Siblings, poll_seconds: float) -> None:
    """Return when a bundle can answer, or when it cannot but no sibling takes requests either."""
    while True:
        try:
            follower.check()
        except Exception:  # as in the follower's thread, which goes on from here
            log.exception("looking at the champion failed; trying again")
        if follower.served is not None or siblings.is_alone():
            return
        time.sleep(poll_seconds)
