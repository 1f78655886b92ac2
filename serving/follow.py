"""Keeping the served bundle equal to the store's champion, without a restart and without a gap.

A background thread looks at `champion.json`. A new champion is opened completely, canaries included, before
one reference is swapped; a request that already took the old retriever finishes on it. A bundle that cannot
be opened is refused, said so, and the old one keeps serving.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from features.artifact import MANIFEST
from features.errors import TwotowerError
from serving.bundle import load
from serving.retriever import QueryLimits, Retriever
from serving.store import Store

RETRY_SECONDS = 60.0
"""A refused bundle is tried again after this long, since a disk or memory can recover."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """The bundle that answers, and since when (ISO 8601 UTC)."""

    retriever: Retriever
    loaded_at: str


@dataclass(frozen=True)
class Refusal:
    """Why the champion is not what answers; `bundle_id` is None where the pointer itself is unreadable."""

    bundle_id: str | None
    message: str


class Follower:
    """Serves a store's champion, whichever it is at the moment.

    Args:
        store: Where bundles and the pointer are.
        limits: For the retrievers.
        device: Where indexes are searched: `auto`, `cpu` or `gpu`.
        poll_seconds: Time between two looks at the pointer.

    Attributes:
        swaps: How many bundles were swapped in.
        after_swap: Called after each; None: nothing is.
    """

    def __init__(
        self, store: Store, limits: QueryLimits | None = None, device: str = "auto", poll_seconds: float = 1.0
    ) -> None:
        self.store = store
        self.swaps = 0
        self.after_swap: Callable[[], None] | None = None
        self._limits = limits or QueryLimits()
        self._device = device
        self._poll_seconds = poll_seconds
        self._served: Served | None = None
        self._refusal: Refusal | None = None
        self._refused_state: tuple[str, int, int] | None = None
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def served(self) -> Served | None:
        """What answers now; take it once a request and use that one to the end."""
        return self._served

    @property
    def refusal(self) -> Refusal | None:
        """Why something else than the champion answers; None while all is well."""
        return self._refusal

    def start(self) -> None:
        """Begin to follow in the background."""
        self._thread = threading.Thread(target=self._run, name="follow-champion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following, after a load that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Look at the pointer once and swap if the champion is another one."""
        try:
            champion = self.store.champion()
        except TwotowerError as error:
            self._refuse(None, str(error))
            return
        if champion is None:
            self._refuse(None, self._without_champion())
            return
        if self._serves(champion.bundle_id):
            self._refusal = self._refused_state = None
            return
        state = (champion.bundle_id, self._changed_at(champion.bundle_id), self._pointer_changed_at())
        if state != self._refused_state or time.monotonic() >= self._retry_at:
            self._swap(champion.bundle_id, state)

    def _without_champion(self) -> str:
        if not self.store.root.is_dir():
            return f"{self.store.root} is not there"
        if not self.store.bundles.is_dir():
            return (
                f"{self.store.root} has no champion yet, nor bundles; run a configuration whose store it is"
            )
        return f"{self.store.root} has no champion yet; run or promote one"

    def _serves(self, bundle_id: str) -> bool:
        return self._served is not None and self._served.retriever.bundle.bundle_id == bundle_id

    def _swap(self, bundle_id: str, state: tuple[str, int, int]) -> None:
        log.info("loading bundle %s", bundle_id)
        try:
            bundle = load(self.store.bundle_path(bundle_id), self._device, self.store.trusted_keys)
        except (TwotowerError, MemoryError) as error:
            short_of_memory = "not enough memory to hold it beside the bundle that is served"
            self._refuse(bundle_id, short_of_memory if isinstance(error, MemoryError) else str(error))
            return
        finally:
            self._refused_state, self._retry_at = state, time.monotonic() + RETRY_SECONDS
        self._served = Served(Retriever(bundle, self._limits), _now())
        self.swaps += 1
        self._refusal = self._refused_state = None
        if self.after_swap is not None:
            self.after_swap()
        log.info("serving bundle %s: %d documents, %s", bundle_id, len(bundle.doc_ids), bundle.index.note)
        _give_memory_back()

    def _refuse(self, bundle_id: str | None, message: str) -> None:
        refusal = Refusal(bundle_id, message)
        if refusal != self._refusal:
            kept = self._served.retriever.bundle.bundle_id if self._served else "nothing"
            log.warning("%s (still serving %s)", message, kept)
        self._refusal = refusal

    def _changed_at(self, bundle_id: str) -> int:
        try:
            return (self.store.bundle_path(bundle_id) / MANIFEST).stat().st_mtime_ns
        except OSError:
            return 0

    def _pointer_changed_at(self) -> int:
        try:
            return self.store.pointer.stat().st_mtime_ns
        except OSError:
            return 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.check()
            except Exception as error:  # the thread must outlive whatever a load can raise
                failed = Refusal(None, f"looking at the champion failed: {type(error).__name__}: {error}")
                if failed != self._refusal:
                    log.exception("looking at the champion failed; trying again")
                self._refusal = failed
            self._stop.wait(self._poll_seconds)


def _give_memory_back() -> None:
    """Return to the system what loading and the bundle before left free, where the C library is glibc.

    It would stay resident otherwise: over 40 swaps of a 27 MB bundle up to 64 MB beyond what is used.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
