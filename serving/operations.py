"""Routes for those who run the server: its metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.metrics import CONTENT_TYPE, Metrics

operations = APIRouter()


@operations.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Return the counters of this process for Prometheus."""
    counters: Metrics = request.app.state.metrics
    return Response(counters.exposition(), media_type=CONTENT_TYPE)
