"""`POST /v1/events`: clicks and other events come back, into the log that the next ingest reads."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, StrictStr

from serving.batching import BusyError
from serving.queries import QueryError
from serving.query_log import Event, QueryLog
from serving.wire import REFUSALS, DocId, ErrorReply, QueryId

_COUNTED_ACTIONS = frozenset({"click", "impression"})
_OLDEST = timedelta(days=7)
_CLOCKS_DIFFER = timedelta(minutes=5)


def _is_recent(moment: datetime) -> datetime:
    now = datetime.now(UTC)
    if not now - _OLDEST <= moment <= now + _CLOCKS_DIFFER:
        raise ValueError("must be within the last 7 days and not in the future")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_is_recent)]


class QueryLogOffError(QueryError):
    """Events are refused where there is no log to keep them in."""

    status = 409


class EventRequest(BaseModel):
    """Something that somebody did with a document that a search found."""

    model_config = ConfigDict(extra="forbid")

    query_id: QueryId = Field(description="of the reply that showed it")
    doc_id: DocId = Field(description="the document")
    action: StrictStr = Field(
        "click",
        pattern="^[a-z][a-z0-9_]{0,63}$",
        description="click, impression, or a name of your own that ingestion counts and leaves aside",
    )
    position: StrictInt | None = Field(None, ge=1, le=100_000, description="where it stood, from 1")
    client_id: StrictStr | None = Field(None, min_length=1, max_length=512, description="who it was")
    timestamp: Moment | None = Field(
        None, description="when, with a time zone, in the last 7 days; now if left out"
    )


class EventsRequest(BaseModel):
    """Events, in the order in which they happened."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"events": [{"query_id": "q1", "doc_id": "d01", "position": 1}]}]},
    )

    events: list[EventRequest] = Field(
        min_length=1, max_length=1_000, description="all are taken, or none is"
    )


class EventsReply(BaseModel):
    """What was taken."""

    accepted: int = Field(description="events that will be written")
    unknown_queries: int = Field(
        description="of those, events of queries that this process did not answer lately; they are kept"
    )


events = APIRouter(responses=REFUSALS)


@events.post(
    "/v1/events",
    status_code=202,
    responses={409: {"model": ErrorReply, "description": "the query log is off"}},
)
async def take_events(request: Request, body: EventsRequest) -> EventsReply:
    """Take clicks and other events on what was found."""
    log: QueryLog = request.app.state.query_log
    if not log.config.enabled:
        raise QueryLogOffError("query_log_off", "this server keeps no query log (serve.query_log.enabled)")
    if log.failure is not None:
        raise BusyError(
            "query_log_failing", f"events cannot be kept now: {log.failure}; send them again later"
        )
    now = datetime.now(UTC)
    given = [
        Event(one.query_id, one.doc_id, one.action, one.position, one.client_id, one.timestamp or now)
        for one in body.events
    ]
    if not log.take(given):
        raise BusyError("query_log_full", "more events arrive than are written; try again")
    unknown = 0
    for event in given:
        known = log.knows(event.query_id)
        unknown += not known
        action = event.action if event.action in _COUNTED_ACTIONS else "other"
        request.app.state.metrics.events.labels(action, "served" if known else "unknown").inc()
    return EventsReply(accepted=len(given), unknown_queries=unknown)
