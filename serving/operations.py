"""Routes for those who run the server: its metrics, and the way back to an earlier champion."""

import asyncio

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from features.errors import ArtifactError
from serving.follow import Follower
from serving.metrics import CONTENT_TYPE, Metrics, merged
from serving.queries import QueryError
from serving.siblings import Siblings
from serving.wire import REFUSALS, ErrorReply

operations = APIRouter(responses=REFUSALS)


class RollbackError(QueryError):
    """There is nothing to go back to."""

    status = 409


class RollbackRequest(BaseModel):
    """Which champion to go back to."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "worse results since noon"}]}
    )

    bundle_id: StrictStr | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="an earlier champion; the latest whole one if left out"
    )
    reason: StrictStr = Field("", max_length=500, description="kept in the store's history")


class RollbackReply(BaseModel):
    """What the champion is now; every server that follows the store swaps to it."""

    bundle_id: str
    rolled_back_from: str
    passed_over: dict[str, str] = Field(description="earlier champions that are damaged, and how")


@operations.post(
    "/v1/admin/rollback",
    responses={
        403: {"model": ErrorReply, "description": "an admin key is needed"},
        409: {"model": ErrorReply, "description": "there is no such earlier champion, or it is damaged"},
    },
)
async def roll_back(request: Request, body: RollbackRequest) -> RollbackReply:
    """Make an earlier champion the champion again. Needs an admin key, also on loopback."""
    follower: Follower = request.app.state.follower
    try:
        champion, passed_over = await anyio.to_thread.run_sync(
            follower.store.roll_back, body.bundle_id, body.reason
        )
    except ArtifactError as error:
        raise RollbackError("no_rollback", str(error)) from None
    return RollbackReply(
        bundle_id=champion.bundle_id,
        rolled_back_from=champion.rolled_back_from or "",
        passed_over=passed_over,
    )


@operations.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Return the counters of this process for Prometheus, and those of its siblings."""
    counters: Metrics = request.app.state.metrics
    siblings: Siblings | None = request.app.state.siblings
    text = counters.exposition()
    if siblings is not None:
        told = {siblings.place: text, **await siblings.ask()}
        text = await asyncio.to_thread(merged, told)  # not in the threads of other requests
    return Response(text, media_type=CONTENT_TYPE)
