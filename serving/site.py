"""Whether the process lives and is ready, and the pages for people."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serving.current import Current
from serving.wire import REFUSALS, LiveReply, ReadyReply

PAGE = Path(__file__).parent / "page"

site = APIRouter(responses={status: REFUSALS[status] for status in (431, 503)})


@site.get("/livez")
async def livez() -> LiveReply:
    """Say that the process answers."""
    return LiveReply()


@site.get("/readyz")
async def readyz(current: Current) -> ReadyReply:
    """Say that a bundle whose digests and canaries were checked answers searches; 503 until then."""
    return ReadyReply(bundle_id=current.retriever.bundle.bundle_id)


@site.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html")


@site.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """Return the documentation page, which reads /openapi.json and nothing from elsewhere."""
    return FileResponse(PAGE / "docs.html")
