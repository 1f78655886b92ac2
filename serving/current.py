"""What a request is answered by: the served bundle, or another one of the store; and how it is asked."""

import time
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, Request

from serving.batching import Batcher
from serving.follow import Follower, Served
from serving.refusals import NotReadyError
from serving.retriever import Answer, QueryError, Retriever
from serving.search import Search
from serving.shelf import Shelf
from serving.wire import Timings


async def served(request: Request) -> Served:
    """Return the served bundle; a request takes it once and uses it to the end.

    Raises:
        NotReadyError: If none is loaded yet.
    """
    follower: Follower = request.app.state.follower
    now = follower.served
    if now is None:
        refusal = follower.refusal
        raise NotReadyError(refusal.message if refusal else "the champion is being loaded and checked")
    return now


Current = Annotated[Served, Depends(served)]


async def retriever_of(request: Request, current: Served, bundle_id: str | None) -> Retriever:
    """Return the champion's retriever, or that of the bundle that the request names.

    Raises:
        QueryError: If the store does not have it, or it cannot be opened.
        BusyError: If too many wait for bundles to be opened.
    """
    champion = current.retriever
    if bundle_id is None or bundle_id == champion.bundle.bundle_id:
        return champion
    shelf: Shelf = request.app.state.shelf
    opened = shelf.find(bundle_id)
    if opened is not None:
        return opened
    # in a thread of its own, since other requests would wait for those that wait for a load
    limiter: anyio.CapacityLimiter = request.app.state.loads
    with shelf.place_to_wait():
        return await anyio.to_thread.run_sync(shelf.get, bundle_id, limiter=limiter)


async def answers(
    request: Request, retriever: Retriever, searches: list[Search]
) -> list[Answer | QueryError]:
    """Answer searches of one request; every route that searches comes through here."""
    batcher: Batcher = request.app.state.batcher
    return await batcher.answer(retriever, searches)


def timings(started: float, encode_ms: float = 0.0, search_ms: float = 0.0) -> Timings:
    """Return where the time since `started` (by `time.perf_counter`) went."""
    total = (time.perf_counter() - started) * 1e3
    return Timings(encode=round(encode_ms, 3), search=round(search_ms, 3), total=round(total, 3))
