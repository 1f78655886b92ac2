"""What requests wait for besides searches: a bundle that is being opened, and a thread that may encode.

Both waits end at the request's deadline. Everything here is the event loop's.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from serving.admission import Admission
from serving.batching import DEADLINE, BusyError
from serving.retriever import Retriever
from serving.shelf import Shelf

MOST_WAITING = 32
"""So many requests may wait for bundles to be opened, whichever."""

Result = TypeVar("Result")
Given = TypeVarTuple("Given")


class Loads:
    """Opens bundles beside the champion: one at a time, each once for all who ask for it meanwhile.

    Who waits has no place among the requests that are answered, and gets the bundle that it waited for also
    where the shelf has gone on to others. A load that has begun goes on when nobody waits any more; one that
    has not is left out.

    Args:
        shelf: Where opened bundles stay.
        admission: Who has a place.
    """

    def __init__(self, shelf: Shelf, admission: Admission) -> None:
        self._shelf = shelf
        self._admission = admission
        self._turn = asyncio.Semaphore(1)
        self._thread = anyio.CapacityLimiter(1)
        self._loads: dict[str, asyncio.Task[Retriever]] = {}
        self._waiting: Counter[str] = Counter()

    async def get(self, bundle_id: str) -> Retriever:
        """Return a bundle, opening it where it is not open.

        Raises:
            QueryError: If the store does not have it, or it cannot be served.
            BusyError: If `MOST_WAITING` wait already, or the deadline passes first.
        """
        opened = self._shelf.find(bundle_id)
        if opened is not None:
            return opened
        if self._waiting.total() >= MOST_WAITING:
            raise BusyError(
                "loads_full", f"{MOST_WAITING} requests wait for bundles to be opened already; try again"
            )
        self._waiting[bundle_id] += 1
        try:
            with self._admission.stepped_aside():
                await anyio.to_thread.run_sync(self._shelf.check, bundle_id)
                return await self._loaded(bundle_id)
        finally:
            self._waiting -= Counter([bundle_id])

    async def _loaded(self, bundle_id: str) -> Retriever:
        load = self._loads.get(bundle_id)
        if load is None:
            load = self._loads[bundle_id] = asyncio.create_task(self._load(bundle_id))
            load.add_done_callback(partial(self._end, bundle_id))
        await asyncio.wait({load}, timeout=_left())
        if not load.done():
            text = f"the deadline passed while bundle {bundle_id} was to be opened; try again"
            raise BusyError("deadline", text)
        return load.result()

    async def _load(self, bundle_id: str) -> Retriever:
        async with self._turn:
            if not self._waiting[bundle_id]:
                del self._loads[bundle_id]  # now: who comes next begins another
                raise BusyError("deadline", f"nobody waits for bundle {bundle_id} any more")
            return await anyio.to_thread.run_sync(self._shelf.get, bundle_id, limiter=self._thread)

    def _end(self, bundle_id: str, load: "asyncio.Task[Retriever]") -> None:
        if self._loads.get(bundle_id) is load:
            del self._loads[bundle_id]
        if not load.cancelled():
            load.exception()  # nobody may be left to hear it


class Places:
    """Threads for one kind of work, which takes none from other work.

    Args:
        count: How many work at once.
    """

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._threads = anyio.CapacityLimiter(count)

    async def run(self, work: Callable[[*Given], Result], *given: *Given) -> Result:
        """Return what work in a thread returns, once one is free.

        Raises:
            BusyError: If the deadline passes first.
        """
        try:
            async with asyncio.timeout(_left()):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError("deadline", "the deadline passed before work began") from None
        try:
            return await anyio.to_thread.run_sync(work, *given, limiter=self._threads)
        finally:
            self._free.release()


def _left() -> float | None:
    """Return the seconds until the request's deadline."""
    deadline = DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
