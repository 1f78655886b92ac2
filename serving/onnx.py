"""The query tower's transformer as an ONNX graph: the same vectors, in less time, one query at a time.

Only text towers become a graph; a feature tower's few lookups gain nothing from one. int8 weights are taken
where `serving.graph_choice` measures that the documents found with them are as good as with float32.

onnx and onnxruntime are imported where they are needed, since they are an extra (`onnx`).

Shapes: N texts, L tokens, D embedding.
"""

import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from features.errors import BundleError, ConfigError
from serving.vectors import Vectors
from towers.encoders.text import TextEncoder
from towers.two_tower import TwoTower

FILE = "query.onnx"
Precision = Literal["float32", "int8"]

_OPSET = 17
_PRECISION = "precision"  # in the metadata of graphs that are not float32
_EXAMPLE = (2, 5)
_SENTINEL_TOLERANCE = 1e-4


class OnnxQueries:
    """Encodes texts by a graph. Safe to call from many threads.

    Args:
        path: The graph, whose digest was verified.
        encoder: The tower it was made from: its tokenizer is used.

    Raises:
        BundleError: If onnxruntime is not installed or cannot read the graph.
    """

    def __init__(self, path: Path, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._session = _session(path)
        self._one_by_one = _PRECISION in self._session.get_modelmeta().custom_metadata_map

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return (N, D) float32 vectors, comparable like those of `TwoTower.encode_queries`.

        int8 scales what flows through the graph by the largest of a batch, so that a text's vector would
        depend on its batch mates: such a graph gets one text at a time.
        """
        if self._one_by_one and len(texts) > 1:
            return np.concatenate([self.encode([text]) for text in texts])
        lists = self._encoder.tokenise(texts)
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        mask_NL = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
        tokens_NL = np.full(mask_NL.shape, self._encoder.padding, dtype=np.int64)
        tokens_NL[mask_NL] = np.concatenate(lists)
        vectors: Vectors = self._session.run(None, {"tokens": tokens_NL, "mask": mask_NL})[0]
        return vectors


def is_possible(towers: TwoTower) -> bool:
    """Return whether the query tower can become a graph here: it is a transformer, and onnx is installed."""
    installed = all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))
    return installed and isinstance(towers.query, TextEncoder)


def write_graph(towers: TwoTower, path: Path, precision: Precision) -> None:
    """Write the query tower as a graph; equal towers give equal bytes.

    Raises:
        ConfigError: If the tower is no transformer, onnx is not installed, or the graph gives other vectors.
    """
    encoder = towers.query
    if not isinstance(encoder, TextEncoder):
        raise ConfigError("index.query_onnx: only a text tower can become a graph; set it to off")
    if not is_possible(towers):
        raise ConfigError("index.query_onnx needs onnx and onnxruntime; install the extra `onnx`")
    graph = _Graph(towers, encoder).eval()
    tokens_NL = torch.arange(1, 1 + _EXAMPLE[0] * _EXAMPLE[1]).reshape(_EXAMPLE) % 100
    mask_NL = torch.arange(_EXAMPLE[1]) < torch.tensor([[_EXAMPLE[1]], [_EXAMPLE[1] - 2]])
    plain = path if precision == "float32" else path.with_suffix(".float32.onnx")
    _trace(graph, (tokens_NL, mask_NL), plain)
    _check(graph, plain, encoder)
    if precision == "int8":
        _quantise(plain, path)
        plain.unlink()


class _Graph(nn.Module):
    """What is traced: padded token ids to comparable vectors."""

    def __init__(self, towers: TwoTower, encoder: TextEncoder) -> None:
        super().__init__()
        self.towers, self.encoder = towers, encoder

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        return self.towers.comparable(self.encoder.encode_tokens(tokens_NL, mask_NL))


def _trace(graph: nn.Module, example: tuple[Tensor, Tensor], path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that needs no onnxscript says that it is the older one
        torch.onnx.export(
            graph,
            example,
            str(path),
            input_names=["tokens", "mask"],
            output_names=["vectors"],
            dynamic_axes={"tokens": {0: "N", 1: "L"}, "mask": {0: "N", 1: "L"}, "vectors": {0: "N"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _check(graph: nn.Module, path: Path, encoder: TextEncoder) -> None:
    """Assert that the graph gives the tower's vectors for shapes that it was not traced with."""
    session = _session(path)
    for rows, length in ((1, 1), (1, encoder.config.max_length), (3, 4)):
        tokens_NL = torch.arange(rows * length).reshape(rows, length) % 97
        mask_NL = torch.arange(length) < torch.tensor([max(1, length - row) for row in range(rows)])[:, None]
        with torch.inference_mode():
            expected = graph(tokens_NL, mask_NL).numpy()
        found = session.run(None, {"tokens": tokens_NL.numpy(), "mask": mask_NL.numpy()})[0]
        if not np.allclose(found, expected, atol=_SENTINEL_TOLERANCE):
            raise ConfigError("this transformer's graph gives other vectors; set index.query_onnx to off")


def _quantise(plain: Path, path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises shape inference, which changes nothing for these graphs
    try:
        quantize_dynamic(plain, path, weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
    graph = onnx.load(path)
    graph.metadata_props.add(key=_PRECISION, value="int8")
    onnx.save(graph, path)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BundleError(f"{path.name} needs onnxruntime; install the extra `onnx`") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
