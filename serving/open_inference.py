"""The Open Inference Protocol beside the API: the champion as the model `twotower`, its bundle id as version.

    GET  /v2, /v2/health/live, /v2/health/ready
    GET  /v2/models/twotower[/versions/V], …/ready
    POST /v2/models/twotower[/versions/V]/infer

The input `text` (BYTES, one query each) gives `doc_ids` (BYTES) and `scores` (FP32), both (B, k), best first,
and `found` (INT32, B): how many of each row are results; what follows them is padding, an empty id and 0.
`query_ids` (BYTES, B) name the queries in the log of queries and clicks (`POST /v1/events`).
`embedding` (FP32, (B, D)) comes where it is asked for. Parameters: `k` and `mode`. Errors are
`{"error": "…"}`.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import importlib.metadata
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from serving.batching import BusyError
from serving.current import Current, answers, encoded, retriever_of
from serving.follow import Served
from serving.inference_wire import (
    NAME,
    OUTPUTS,
    InferenceError,
    InferReply,
    InferRequest,
    LiveServer,
    ModelReply,
    Output,
    ReadyModel,
    ReadyServer,
    ServerReply,
    TensorMetadata,
)
from serving.milvus_collection import IndexUnavailableError
from serving.mistakes import mistake, printable
from serving.queries import QueryError, check_results
from serving.query_log import QueryLog, new_query_id
from serving.refusals import NotReadyError
from serving.retriever import Answer, Retriever
from serving.search import Search
from serving.wire import REFUSALS, ErrorReply

Name = Annotated[str, Path(description=f"the model's name: {NAME}")]
Version = Annotated[str, Path(description="a bundle id of the store")]


class UnknownModelError(QueryError):
    """A model was asked for that this server does not have."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__("unknown_model", f"no model {name[:60]!r}; this server has {NAME!r}")


class _Protocol(APIRoute):
    """A route whose refusals have the protocol's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with its errors caught."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                return _error(400, mistake(error.errors()[0], InferRequest))
            except QueryError as error:
                return _error(error.status if error.status != 422 else 400, str(error))
            except (NotReadyError, BusyError) as error:
                return _error(503, str(error), {"Retry-After": "1"})
            except IndexUnavailableError as error:
                return _error(503, str(error), {"Retry-After": "5"})
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))

        return guarded


_OWN = frozenset({400, 404, 409})  # the others are refused before a route is reached, and 503 by both

inference = APIRouter(
    route_class=_Protocol,
    responses={
        status: {
            **described,
            "model": InferenceError
            if status in _OWN
            else InferenceError | ErrorReply
            if status == 503
            else ErrorReply,
        }
        for status, described in REFUSALS.items()
        if status != 422
    },
    tags=["Open Inference Protocol"],
)


@inference.get("/v2")
async def server() -> ServerReply:
    """Describe the server."""
    return ServerReply(version=importlib.metadata.version("twotower"))


@inference.get("/v2/health/live")
async def live() -> LiveServer:
    """Say that the server answers."""
    return LiveServer()


@inference.get("/v2/health/ready")
async def ready(current: Current) -> ReadyServer:
    """Say that a checked bundle answers; 503 until then."""
    return ReadyServer()


@inference.get("/v2/models/{name}")
async def model(name: Name, current: Current) -> ModelReply:
    """Describe the model as the champion has it."""
    return _described(await _retriever_named(None, current, name, None))


@inference.get("/v2/models/{name}/versions/{version}")
async def model_version(request: Request, name: Name, version: Version, current: Current) -> ModelReply:
    """Describe the model as a bundle has it."""
    return _described(await _retriever_named(request, current, name, version))


@inference.get("/v2/models/{name}/ready")
async def model_ready(name: Name, current: Current) -> ReadyModel:
    """Say that the model answers."""
    await _retriever_named(None, current, name, None)
    return ReadyModel()


@inference.get("/v2/models/{name}/versions/{version}/ready")
async def version_ready(request: Request, name: Name, version: Version, current: Current) -> ReadyModel:
    """Say that a version of the model answers, after opening it where it is not open."""
    await _retriever_named(request, current, name, version)
    return ReadyModel()


@inference.post("/v2/models/{name}/infer", response_model_exclude_none=True)
async def infer(request: Request, name: Name, body: InferRequest, current: Current) -> InferReply:
    """Find the documents nearest to each text, by the champion."""
    return await _inferred(request, await _retriever_named(None, current, name, None), body)


@inference.post("/v2/models/{name}/versions/{version}/infer", response_model_exclude_none=True)
async def infer_version(
    request: Request, name: Name, version: Version, body: InferRequest, current: Current
) -> InferReply:
    """Find the documents nearest to each text, by a bundle."""
    return await _inferred(request, await _retriever_named(request, current, name, version), body)


async def _retriever_named(
    request: Request | None, current: Served, name: str, version: str | None
) -> Retriever:
    if name != NAME:
        raise UnknownModelError(name)
    if request is None or version is None:
        return current.retriever
    return await retriever_of(request, current, version)


def _described(retriever: Retriever) -> ModelReply:
    bundle = retriever.bundle
    return ModelReply(
        versions=[bundle.bundle_id],
        inputs=[TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorMetadata(name="doc_ids", datatype="BYTES", shape=[-1, -1]),
            TensorMetadata(name="scores", datatype="FP32", shape=[-1, -1]),
            TensorMetadata(name="found", datatype="INT32", shape=[-1]),
            TensorMetadata(name="query_ids", datatype="BYTES", shape=[-1]),
            TensorMetadata(name="embedding", datatype="FP32", shape=[-1, bundle.index.dimension]),
        ],
    )


async def _inferred(request: Request, retriever: Retriever, body: InferRequest) -> InferReply:
    texts = _texts(body, retriever)
    wanted = [output.name for output in body.outputs] if body.outputs is not None else list(OUTPUTS[:4])
    for name in wanted:
        if name not in OUTPUTS:
            raise QueryError("unknown_output", f"no output {name[:60]!r}; outputs are {', '.join(OUTPUTS)}")
    check_results([body.parameters.k] * len(texts), retriever.limits)
    searches = [Search(text=text, k=body.parameters.k, mode=body.parameters.mode) for text in texts]
    answered: list[Answer] = []
    for place, answer in enumerate(await answers(request, retriever, searches)):
        if isinstance(answer, QueryError):
            raise QueryError(answer.code, f"text {place}: {answer}")
        answered.append(answer)
    query_ids = [new_query_id() for _ in texts]
    outputs = {output.name: output for output in _ranked(answered, query_ids)}
    if "embedding" in wanted:
        vectors = await encoded(request, retriever.embed, [Search(text=text) for text in texts])
        outputs["embedding"] = Output(
            name="embedding",
            shape=list(vectors.shape),
            datatype="FP32",
            data=vectors.ravel().tolist(),
        )
    if "doc_ids" in wanted:  # else nothing is shown
        log: QueryLog = request.app.state.query_log
        for query_id, one, answer in zip(query_ids, searches, answered, strict=True):
            log.served(query_id, retriever.bundle.bundle_id, one, answer)
    return InferReply(
        model_version=retriever.bundle.bundle_id,
        id=body.id,
        outputs=[outputs[name] for name in dict.fromkeys(wanted)],
    )


def _ranked(answered: list[Answer], query_ids: list[str]) -> list[Output]:
    shape = [len(answered), answered[0].k]
    ids: list[str] = []
    scores: list[float] = []
    for answer in answered:
        padding = answer.k - len(answer.hits)
        ids += [hit.doc_id for hit in answer.hits] + [""] * padding
        scores += [hit.score for hit in answer.hits] + [0.0] * padding
    found = [len(answer.hits) for answer in answered]
    return [
        Output(name="doc_ids", shape=shape, datatype="BYTES", data=ids),
        Output(name="scores", shape=shape, datatype="FP32", data=scores),
        Output(name="found", shape=shape[:1], datatype="INT32", data=found),
        Output(name="query_ids", shape=shape[:1], datatype="BYTES", data=query_ids),
    ]


def _texts(body: InferRequest, retriever: Retriever) -> list[str]:
    """Return the texts of a request after checking that its one tensor is what it says."""
    if len(body.inputs) != 1 or body.inputs[0].name != "text" or body.inputs[0].datatype != "BYTES":
        raise QueryError("invalid_input", "give one input, named 'text', with datatype BYTES")
    tensor = body.inputs[0]
    texts = [
        part[0] if isinstance(part, list) and len(part) == 1 else part for part in tensor.data
    ]  # rows of one are as good as a flat list
    if not all(isinstance(text, str) for text in texts):
        raise QueryError("invalid_input", "the data of 'text' must be strings")
    if tensor.shape not in ([len(texts)], [len(texts), 1]):
        raise QueryError("invalid_input", f"shape {tensor.shape[:4]} does not fit {len(texts)} texts")
    most = retriever.limits.max_batch
    if not 1 <= len(texts) <= most:
        raise QueryError("invalid_batch", f"{len(texts)} texts; a request must have 1 to {most}")
    return texts


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": printable(" ".join(message.split())[:500])}, status, headers)
