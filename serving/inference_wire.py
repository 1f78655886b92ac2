"""The JSON of the Open Inference Protocol.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from serving.search import Mode

NAME = "twotower"
OUTPUTS = ("doc_ids", "scores", "found", "query_ids", "embedding")


class Tensor(BaseModel):
    """An input: strings, flat or in rows of one."""

    model_config = ConfigDict(extra="ignore")

    name: StrictStr
    shape: list[Annotated[int, Field(strict=True, ge=0, lt=2**63)]] = Field(description="[B] or [B, 1]")
    datatype: StrictStr = Field(description="BYTES")
    data: list[Any] = Field(description="B texts")


class Wanted(BaseModel):
    """An output that is asked for."""

    name: StrictStr


class Parameters(BaseModel):
    """How to search."""

    model_config = ConfigDict(extra="ignore")

    k: StrictInt = Field(10, description="how many documents for each query")
    mode: Mode = Field("dense", description="dense, bm25 or hybrid")


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "parameters": {"k": 3},
                    "inputs": [
                        {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["red shoes", "lamp"]}
                    ],
                    "outputs": [{"name": "doc_ids"}, {"name": "scores"}],
                }
            ]
        },
    )

    id: StrictStr | None = Field(None, max_length=512, description="comes back in the reply")
    parameters: Parameters = Field(default_factory=Parameters, description="how to search")
    inputs: list[Tensor] = Field(description="one input, `text`")
    outputs: list[Wanted] | None = Field(
        None, description=f"which of {', '.join(OUTPUTS)}; all but embedding if left out"
    )


class Output(BaseModel):
    """An output, its rows one after the other."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "INT32"]
    data: list[str] | list[float] | list[int]


class InferReply(BaseModel):
    """What the model answered."""

    model_name: str = NAME
    model_version: str = Field(description="the bundle that answered")
    id: str | None = Field(None, description="that of the request")
    outputs: list[Output]


class TensorMetadata(BaseModel):
    """An input or output of the model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelReply(BaseModel):
    """What the model takes and gives."""

    name: str = NAME
    versions: list[str]
    platform: str = "twotower_faiss"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerReply(BaseModel):
    """The server."""

    name: str = NAME
    version: str
    extensions: list[str] = Field(default_factory=list)


class LiveServer(BaseModel):
    """The server answers."""

    live: Literal[True] = True


class ReadyServer(BaseModel):
    """The server has a model that answers."""

    live: Literal[True] = True
    ready: Literal[True] = True


class ReadyModel(BaseModel):
    """The model answers."""

    name: str = NAME
    ready: Literal[True] = True


class InferenceError(BaseModel):
    """The protocol's shape of an error."""

    error: str
