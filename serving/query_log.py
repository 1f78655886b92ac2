"""What was asked and what was shown, as User Behavior Insights that the next ingest reads.

One line for a query and one for each document of its answer, in `ubi-<UTC date>.jsonl`, files that
`features.readers.ubi` reads; clicks come back by `serving.events`. A thread writes; serving never waits for
it, and what it cannot take is dropped and counted. Where nothing can be written, as on a full disk, it tries
again until it can; events are refused meanwhile, since nobody can promise to keep them.
"""

import logging
import random
import threading
import time
from collections import OrderedDict, deque
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from prometheus_client import Gauge
from pydantic import Field

from features.config import Config
from serving.append import append_lines
from serving.metrics import Metrics
from serving.search import Answer, Search
from serving.ubi import Event as Event
from serving.ubi import Shown, lines_of

WANTED: ContextVar[bool] = ContextVar("WANTED", default=True)
"""Whether the present request is to be logged; the header `X-Query-Log: off` says no."""

_WRITE_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_COMPLAIN_SECONDS = 60.0  # between two complaints, where writing fails and succeeds in turns
_AT_ONCE = 200  # queries and events that are written together
_REMEMBERED = 20_000

log = logging.getLogger(__name__)


class QueryLogConfig(Config):
    """The log of served queries, which later training reads."""

    enabled: bool = Field(
        True, description="whether queries, what they found, and events are written to `ubi/` in the store"
    )
    impressions: int = Field(
        100,
        ge=0,
        le=100_000,
        description="documents of an answer that count as shown, from its top; with 0 the application sends "
        "what it showed by POST /v1/events",
    )
    users: bool = Field(True, description="whether user ids are written")
    max_waiting: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="queries and events that wait to be written; more are dropped",
    )


def new_query_id() -> str:
    """Return a random id for a query, 32 hexadecimal digits."""
    return f"{random.getrandbits(128):032x}"


class QueryLog:
    """Writes served queries and events in the background.

    Args:
        directory: Where the files are; made when something is written, but not the store that it is in.
        config: What is written.
        metrics: Counts lines by outcome: written, dropped, failed (tried again until they are written).

    Attributes:
        failure: Why nothing can be written now; None while all is well.
    """

    def __init__(self, directory: Path, config: QueryLogConfig, metrics: Metrics) -> None:
        self.directory = directory
        self.config = config
        self.failure: str | None = None
        self._metrics = metrics
        self._waiting: deque[Shown | Event] = deque()
        self._taken: deque[tuple[str, list[str]]] = deque()  # days and their lines, to be written next
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = -_COMPLAIN_SECONDS
        self._said = False  # whether the present failure was
        failing = "1 while the query log cannot be written."
        Gauge("twotower_query_log_failing", failing, registry=metrics.registry).set_function(
            lambda: self.failure is not None
        )

    def start(self) -> None:
        """Begin to write."""
        if self.config.enabled:
            self._thread = threading.Thread(target=self._run, name="query-log", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def served(
        self, query_id: str, bundle_id: str, search: Search, answer: Answer, of_document: str | None = None
    ) -> None:
        """Take note of an answer that goes out; returns at once.

        Args:
            query_id: Of the reply.
            bundle_id: What answered.
            search: What was asked.
            answer: What was found.
            of_document: Whose neighbours were asked for, instead of a search.
        """
        if not self.config.enabled or not WANTED.get():
            return
        self._recent[query_id] = None
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        if len(self._waiting) >= self.config.max_waiting:
            self._metrics.log_lines.labels("dropped").inc()
            return
        shown = Shown(
            query_id=query_id,
            bundle_id=bundle_id,
            text=search.text,
            mode=search.mode if of_document is None else "neighbors",
            k=answer.k,
            user_id=search.user_id if self.config.users else None,
            of_document=of_document,
            doc_ids=tuple(hit.doc_id for hit in answer.hits[: self.config.impressions]),
            timestamp=datetime.now(UTC),
        )
        self._waiting.append(shown)

    def take(self, events: list[Event]) -> bool:
        """Take note of events, all or none; False where there is no room for them now."""
        if len(self._waiting) + len(events) > max(self.config.max_waiting, len(events)):
            self._metrics.log_lines.labels("dropped").inc(len(events))
            return False
        self._waiting.extend(events if self.config.users else [replace(e, client_id=None) for e in events])
        return True

    def knows(self, query_id: str) -> bool:
        """Whether this process answered that query lately; others may have."""
        return query_id in self._recent

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_WRITE_SECONDS if self.failure is None else _RETRY_SECONDS)
            while self._write_taken() and self._waiting:
                self._take_lines()
        lost = sum(len(lines) for _, lines in self._taken) + len(self._waiting)
        if lost:
            self._metrics.log_lines.labels("dropped").inc(lost)
            log.warning("the query log in %s lost what could not be written", self.directory)

    def _take_lines(self) -> None:
        items = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
        for day, group in groupby(items, lambda item: item.timestamp.strftime("%Y-%m-%d")):
            self._taken.append((day, [line for item in group for line in lines_of(item)]))

    def _write_taken(self) -> bool:
        """Write the lines that were taken; False where some are to be tried again."""
        while self._taken:
            day, lines = self._taken[0]
            try:
                self.directory.mkdir(exist_ok=True)  # without parents: a store that was removed stays so
                append_lines(self.directory / f"ubi-{day}.jsonl", lines)
            except OSError as error:
                if self.failure is None:
                    self._metrics.log_lines.labels("failed").inc(len(lines))
                self._fail(error.strerror or type(error).__name__)
                return False
            self._metrics.log_lines.labels("written").inc(len(lines))
            self._taken.popleft()
            self.failure = None
            if self._said:
                self._said = False
                log.info("the query log in %s is written again", self.directory)
        return True

    def _fail(self, reason: str) -> None:
        if not self._said and time.monotonic() - self._complained >= _COMPLAIN_SECONDS:
            self._said, self._complained = True, time.monotonic()
            log.warning("the query log in %s cannot be written: %s", self.directory, reason)
        self.failure = reason
