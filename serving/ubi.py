"""What was asked, shown and done, as lines of User Behavior Insights that `features.readers.ubi` reads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_encoded = json.JSONEncoder().encode  # as json.dumps, which looks at its arguments first


@dataclass(frozen=True, slots=True)
class Shown:
    """A query that was answered: no more of it than is written.

    Attributes:
        query_id: Of the reply.
        bundle_id: What answered.
        text: What was typed; None of a history and of a document's neighbours.
        mode: How it was searched: dense, bm25, hybrid or neighbors.
        k: How many could be returned.
        user_id: Who asked; None where that is not known or not written.
        of_document: Whose neighbours were asked for; None of a search.
        doc_ids: What was found, best first.
        timestamp: When.
    """

    query_id: str
    bundle_id: str
    text: str | None
    mode: str
    k: int
    user_id: str | None
    of_document: str | None
    doc_ids: tuple[str, ...]
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that somebody did with a document that was found.

    Attributes:
        query_id: Of the reply that showed it.
        doc_id: The document.
        action: Such as `click`.
        position: Where it stood, from 1; None where that is not known.
        client_id: Who it was; None where that is not known or not written.
        timestamp: When.
    """

    query_id: str
    doc_id: str
    action: str
    position: int | None
    client_id: str | None
    timestamp: datetime


def lines_of(item: Shown | Event) -> Iterator[str]:
    """Return the lines of an event, or those of a query and of each document that it found."""
    if isinstance(item, Event):
        yield _encoded(_event(item))
        return
    common = {
        "query_id": item.query_id,
        "client_id": item.user_id,
        "timestamp": item.timestamp.isoformat(timespec="milliseconds"),
    }
    asked: dict[str, Any] = {"bundle_id": item.bundle_id, "mode": item.mode, "k": item.k}
    if item.of_document is not None:
        asked["doc_id"] = item.of_document
    begin = _encoded(common)[1:-1]
    yield f'{{{begin}, "user_query": {_encoded(item.text)}, "query_attributes": {_encoded(asked)}}}'
    begin = f'{{"action_name": "impression", {begin}, "event_attributes": {{"object": {{"object_id": '
    for rank, doc_id in enumerate(item.doc_ids, 1):  # `_event` of each, but for the equal part
        shown = f'{_encoded(doc_id)}, "object_id_field": "doc_id"}}, "position": {{"ordinal": {rank}'
        yield f"{begin}{shown}}}}}}}"


def _event(event: Event) -> dict[str, Any]:
    attributes: dict[str, Any] = {"object": {"object_id": event.doc_id, "object_id_field": "doc_id"}}
    if event.position is not None:
        attributes["position"] = {"ordinal": event.position}
    return {
        "action_name": event.action,
        "query_id": event.query_id,
        "client_id": event.client_id,
        "timestamp": event.timestamp.isoformat(timespec="milliseconds"),
        "event_attributes": attributes,
    }
