"""What was asked and what was shown, as User Behavior Insights that the next ingest reads.

One line for a query and one for each document of its answer, in `ubi-<UTC date>.jsonl`, files that
`features.readers.ubi` reads; clicks come back by `serving.events`. A thread writes; serving never waits for
it, and what it cannot take is dropped and counted.
"""

import fcntl
import json
import logging
import os
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from features.config import Config
from serving.metrics import Metrics
from serving.search import Answer, Search

WANTED: ContextVar[bool] = ContextVar("WANTED", default=True)
"""Whether the present request is to be logged; the header `X-Query-Log: off` says no."""

_WRITE_SECONDS = 0.2
_COMPLAIN_SECONDS = 60.0
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


@dataclass(frozen=True)
class Event:
    """Something that somebody did with a document that was found.

    Attributes:
        query_id: Of the reply that showed it.
        doc_id: The document.
        action: Such as `click`.
        position: Where it stood, from 1; None where that is not known.
        client_id: Who it was.
        timestamp: When.
    """

    query_id: str
    doc_id: str
    action: str
    position: int | None
    client_id: str | None
    timestamp: datetime


@dataclass(frozen=True)
class _Served:
    query_id: str
    bundle_id: str
    search: Search
    answer: Answer
    timestamp: datetime


class QueryLog:
    """Writes served queries and events in the background.

    Args:
        directory: Where the files are; made when something is written.
        config: What is written.
        metrics: Counts lines by outcome: written, dropped, failed.
    """

    def __init__(self, directory: Path, config: QueryLogConfig, metrics: Metrics) -> None:
        self.directory = directory
        self.config = config
        self._metrics = metrics
        self._waiting: deque[_Served | Event] = deque()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = -_COMPLAIN_SECONDS

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

    def served(self, query_id: str, bundle_id: str, search: Search, answer: Answer) -> None:
        """Take note of an answer that goes out; returns at once."""
        if not self.config.enabled or not WANTED.get():
            return
        self._recent[query_id] = None
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        if len(self._waiting) >= self.config.max_waiting:
            self._metrics.log_lines.labels("dropped").inc()
            return
        self._waiting.append(_Served(query_id, bundle_id, search, answer, datetime.now(UTC)))

    def take(self, events: list[Event]) -> bool:
        """Take note of events, all or none; False where there is no room for them now."""
        if len(self._waiting) + len(events) > max(self.config.max_waiting, len(events)):
            self._metrics.log_lines.labels("dropped").inc(len(events))
            return False
        self._waiting.extend(events)
        return True

    def knows(self, query_id: str) -> bool:
        """Whether this process answered that query lately; others may have."""
        return query_id in self._recent

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_WRITE_SECONDS)
            self._write_waiting()

    def _write_waiting(self) -> None:
        lines: list[tuple[str, str]] = []
        while self._waiting:
            item = self._waiting.popleft()
            day = item.timestamp.strftime("%Y-%m-%d")
            lines += [(day, line) for line in self._lines(item)]
        for day, group in groupby(lines, lambda line: line[0]):
            texts = [text for _, text in group]
            try:
                self._append(self.directory / f"ubi-{day}.jsonl", texts)
            except OSError as error:
                self._metrics.log_lines.labels("failed").inc(len(texts))
                self._complain(error)
            else:
                self._metrics.log_lines.labels("written").inc(len(texts))

    def _append(self, path: Path, lines: Iterable[str]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        data = memoryview(("\n".join(lines) + "\n").encode())
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes serve the same store
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":  # a process was killed within a line
                os.write(file, b"\n")
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)

    def _complain(self, error: OSError) -> None:
        if time.monotonic() - self._complained >= _COMPLAIN_SECONDS:
            self._complained = time.monotonic()
            log.warning("the query log in %s cannot be written: %s", self.directory, error.strerror)

    def _lines(self, item: "_Served | Event") -> Iterator[str]:
        if isinstance(item, Event):
            yield json.dumps(self._event(item))
            return
        search = item.search
        common = {
            "query_id": item.query_id,
            "client_id": self._user(search.user_id),
            "timestamp": item.timestamp.isoformat(timespec="milliseconds"),
        }
        asked = {"bundle_id": item.bundle_id, "mode": search.mode, "k": item.answer.k}
        yield json.dumps({**common, "user_query": search.text, "query_attributes": asked})
        begin = json.dumps({"action_name": "impression", **common})[:-1]
        for hit in item.answer.hits[: self.config.impressions]:  # `_event` of each, but for the equal part
            yield (
                f'{begin}, "event_attributes": {{"object": {{"object_id": {json.dumps(hit.doc_id)}, '
                f'"object_id_field": "doc_id"}}, "position": {{"ordinal": {hit.rank}}}}}}}'
            )

    def _event(self, event: Event) -> dict[str, Any]:
        attributes: dict[str, Any] = {"object": {"object_id": event.doc_id, "object_id_field": "doc_id"}}
        if event.position is not None:
            attributes["position"] = {"ordinal": event.position}
        return {
            "action_name": event.action,
            "query_id": event.query_id,
            "client_id": self._user(event.client_id),
            "timestamp": event.timestamp.isoformat(timespec="milliseconds"),
            "event_attributes": attributes,
        }

    def _user(self, user_id: str | None) -> str | None:
        return user_id if self.config.users else None
