"""Bundles beside the champion, opened when somebody asks for one by its id, to compare with.

Each is checked as completely as the champion is. A few are kept; the one that was not asked for longest goes
first. One is loaded at a time, and a bundle that was refused is not tried again for a while, so that asking
over and over costs little. How requests wait for one is in `serving.waiting`.
"""

import logging
import threading
import time
from collections import OrderedDict

from features.errors import TwotowerError
from serving.bundle import load
from serving.queries import QueryError, QueryLimits
from serving.retriever import Retriever
from serving.store import Store

KEPT = 2
RETRY_SECONDS = 30.0
_REMEMBERED = 64

log = logging.getLogger(__name__)


class UnknownBundleError(QueryError):
    """A bundle was asked for that the store does not have."""

    status = 404

    def __init__(self, bundle_id: str) -> None:
        super().__init__(
            "unknown_bundle", f"the store has no bundle {bundle_id!r}; GET /v1/bundles lists its own"
        )


class RefusedBundleError(QueryError):
    """A bundle was asked for that cannot be served."""

    status = 409

    def __init__(self, message: str) -> None:
        super().__init__("bundle_refused", message)


class Shelf:
    """Opened bundles other than the champion. Safe to call from many threads.

    Args:
        store: Where bundles are.
        limits: For the retrievers.
        device: Where indexes are searched: `auto`, `cpu` or `gpu`.
        kept: How many stay open.
    """

    def __init__(
        self, store: Store, limits: QueryLimits | None = None, device: str = "auto", kept: int = KEPT
    ) -> None:
        self.store = store
        self._limits = limits
        self._device = device
        self._kept = kept
        self._open: OrderedDict[str, Retriever] = OrderedDict()
        self._refused: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._shelf = threading.Lock()
        self._loading = threading.Lock()

    def find(self, bundle_id: str) -> Retriever | None:
        """Return an opened bundle at once, or None where it would have to be loaded."""
        with self._shelf:
            found = self._open.get(bundle_id)
            if found is not None:
                self._open.move_to_end(bundle_id)
            return found

    def check(self, bundle_id: str) -> None:
        """Refuse at once what `get` would refuse without trying to open it.

        Raises:
            UnknownBundleError: If the store does not have it.
            RefusedBundleError: If it could not be opened lately.
        """
        if not self.store.has(bundle_id):
            raise UnknownBundleError(bundle_id)
        until, message = self._refused.get(bundle_id, (0.0, ""))
        if time.monotonic() < until:
            raise RefusedBundleError(message)

    def get(self, bundle_id: str) -> Retriever:
        """Return a bundle, opening it where it is not open; that can take long.

        Raises:
            UnknownBundleError: If the store does not have it.
            RefusedBundleError: If it is damaged or there is no memory for it.
        """
        found = self.find(bundle_id)
        if found is not None:
            return found
        with self._loading:
            return self.find(bundle_id) or self._load(bundle_id)

    def ids(self) -> list[str]:
        """Return which bundles are open, the one asked for longest ago first."""
        with self._shelf:
            return list(self._open)

    def _load(self, bundle_id: str) -> Retriever:
        self.check(bundle_id)
        log.info("loading bundle %s to compare with", bundle_id)
        with self._shelf:  # room first: at no time are more than `kept` in memory
            while len(self._open) >= self._kept:
                self._open.popitem(last=False)
        try:
            bundle = load(self.store.bundle_path(bundle_id), self._device, self.store.trusted_keys)
            opened = Retriever(bundle, self._limits)
        except (TwotowerError, MemoryError) as error:
            why = "there is not enough memory for it" if isinstance(error, MemoryError) else str(error)
            self._refused[bundle_id] = (time.monotonic() + RETRY_SECONDS, why)
            while len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)
            raise RefusedBundleError(why) from None
        with self._shelf:
            self._open[bundle_id] = opened
        return opened
