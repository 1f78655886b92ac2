"""What a request is answered by: the served bundle, or another one of the store; and how it is asked."""

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from serving.batching import Batcher
from serving.follow import Follower, Served
from serving.refusals import NotReadyError
from serving.retriever import Answer, QueryError, Retriever
from serving.search import Search
from serving.waiting import Given, Loads, Places, Result
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
        BusyError: If too many wait for bundles to be opened, or the deadline passes first.
    """
    champion = current.retriever
    if bundle_id is None or bundle_id == champion.bundle.bundle_id:
        return champion
    loads: Loads = request.app.state.loads
    return await loads.get(bundle_id)


async def encoded(request: Request, work: Callable[[*Given], Result], *given: *Given) -> Result:
    """Return what work of the towers returns; other work than searches that encodes comes through here.

    Raises:
        BusyError: If the deadline passes before a thread for it is free.
    """
    encoders: Places = request.app.state.encoders
    return await encoders.run(work, *given)


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
