"""A bundle: query tower, document tower, index, ids and catalogue of one version, published by one rename.

    query/ document/ two_tower.json     the towers, byte for byte as the checkpoint has them
    query.onnx                          the query tower as a graph, where that is faster
    index/index.faiss                   rows in the order of ids.json; milvus.json where Milvus has them
    ids.json                            doc_id of each row; null for a tombstone, which no search returns
    documents.parquet                   the documents, same order: what encoders, BM25 and the page need
    manifest.json                       SHA-256 of every file, and the facts listed in `export`

The directory's name is the first 16 hexadecimal digits of the artifact's digest. A bundle is opened only if
every file matches its SHA-256, the parts agree with each other, and the canary queries get their recorded
answers.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.artifact import Artifact
from features.errors import ArtifactError, BundleError, ConfigError
from features.lexical import LexicalIndex
from features.tables import DOCUMENTS
from features.text import NORMALISER, document_text
from serving import canary, signing, trial
from serving.curve import JSON_NAME, PLOT_NAME
from serving.devices import require_device
from serving.encode import QueryEncoder
from serving.filters import Catalogue
from serving.index import Index, SearchEngine, read
from serving.milvus import MilvusIndex
from serving.onnx import FILE as GRAPH_FILE
from serving.onnx import OnnxQueries
from serving.signing import TrustedKey
from serving.vectors import SIMILARITIES
from towers.encoders.text import TextEncoder
from towers.two_tower import TwoTower

KIND = "bundle"
ID_LENGTH = 16
TOWERS = "two_tower"
CURVE_FILES = frozenset({f"index/{JSON_NAME}", f"index/{PLOT_NAME}"})
"""Timings, which are no part of a bundle's identity."""

_EXECUTABLE = (".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npz")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Nothing in it changes after loading.

    Attributes:
        bundle_id: First 16 digits of the artifact's digest.
        artifact: Path and manifest.
        towers: In evaluation mode.
        index: With the shipped search parameters set.
        documents: The catalogue, in the index's row order.
        doc_ids: Its ids, in the same order.
        rows: The row of each id.
        lexical: BM25 over the same catalogue.
        catalogue: Its fields, ready to be filtered.
        query_encoder: From checked queries to vectors, by the query tower or its graph.
    """

    bundle_id: str
    artifact: Artifact
    towers: TwoTower
    index: SearchEngine
    documents: pd.DataFrame
    doc_ids: list[str]
    rows: dict[str, int]
    lexical: LexicalIndex
    catalogue: Catalogue
    query_encoder: QueryEncoder

    @property
    def query_inputs(self) -> list[str]:
        """What a query consists of: `text` or `history`, as the towers were trained."""
        return list(self.artifact.content["query_inputs"])

    @property
    def excludes_history(self) -> bool:
        """Whether a history's own documents are never returned, as in training and evaluation."""
        return bool(self.artifact.content["exclude_seen"])

    @property
    def history_length(self) -> int | None:
        """How many of the latest documents make a history, as in training; None reads all (older bundles)."""
        length = self.artifact.content.get("history_length")
        return None if length is None else int(length)


def load(path: Path, device: str = "auto", trusted_keys: tuple[TrustedKey, ...] = ()) -> Bundle:
    """Open a published bundle after checking all of it.

    Args:
        path: `…/bundles/<bundle id>`.
        device: Where the index is searched: `auto`, `cpu` or `gpu`.
        trusted_keys: Public keys, one of which must have signed the manifest; none asks for no signature.

    Raises:
        BundleError: If a file is missing or damaged, parts disagree, a canary answers differently, or no
            trusted key signed it.
        ConfigError: If a GPU is required and there is none, or a key cannot be used.
    """
    require_device(device)
    opened = open_bundle(path, device, trusted_keys)
    artifact, documents = opened.artifact, opened.documents
    bundle_id = artifact.digest[:ID_LENGTH]
    if path.resolve().name != bundle_id:
        raise BundleError(f"{path} holds bundle {bundle_id}; a bundle's directory carries its id")
    doc_ids = documents["doc_id"].tolist()
    rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    try:
        pairs = zip(documents["title"], documents["text"], strict=True)
        lexical = LexicalIndex.build(doc_ids, [document_text(title, text) for title, text in pairs])
        catalogue = Catalogue.build(documents, rows)
    except MemoryError:
        raise
    except Exception as error:  # a catalogue that ingestion would not have let through
        raise BundleError(f"bundle {bundle_id} is refused: its catalogue: {_one_line(error)}") from error
    return Bundle(
        bundle_id=bundle_id,
        artifact=artifact,
        towers=opened.towers,
        index=opened.index,
        documents=documents,
        doc_ids=doc_ids,
        rows=rows,
        lexical=lexical,
        catalogue=catalogue,
        query_encoder=opened.query_encoder,
    )


@dataclass(frozen=True)
class Opened:
    """The parts of a bundle that were checked against each other."""

    artifact: Artifact
    towers: TwoTower
    query_encoder: QueryEncoder
    index: SearchEngine
    documents: pd.DataFrame


def open_bundle(path: Path, device: str, trusted_keys: tuple[TrustedKey, ...] = ()) -> Opened:
    """Read and check every part of a bundle, whatever its directory is called.

    Raises:
        BundleError: If a file is missing or damaged or changes meanwhile, parts disagree, a canary answers
            differently, or no trusted key signed it.
        ConfigError: If a key cannot be used.
    """
    artifact = _read_artifact(path, trusted_keys)
    try:
        content = artifact.content
        _check_kinds(artifact)
        if content["text_normaliser"] != NORMALISER:
            raise BundleError(
                f"it was built with text normaliser {content['text_normaliser']!r}; this has {NORMALISER!r}"
            )
        trial.survive(artifact)
        towers = load_towers(path)
        encoder = open_query_encoder(path, towers)
        row_ids = json.loads((path / "ids.json").read_text(encoding="utf-8"))
        doc_ids = [doc_id for doc_id in row_ids if doc_id is not None]
        index = _open_index(path / "index", device, [doc_id is not None for doc_id in row_ids])
        index.set_parameters(content["index"]["search"])
        documents = pd.read_parquet(path / "documents.parquet")
        _check_agreement(content, towers, index, documents, doc_ids)
        rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        canary.check_served(content["canaries"], encoder, index, doc_ids)
        canary.check_exact(content["canaries"], towers, documents, rows)
        artifact.check_unchanged()
    except ArtifactError as error:
        raise BundleError(f"bundle {path.name} is refused: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a library makes of parts that do not fit is damage
        raise BundleError(f"bundle {path.name} is refused: {_one_line(error)}") from error
    return Opened(artifact, towers, encoder, index, documents)


def _read_artifact(path: Path, trusted_keys: tuple[TrustedKey, ...]) -> Artifact:
    """Return what the manifest says, once its signature and every file's SHA-256 are right."""
    try:
        approve = partial(signing.check, path, trusted_keys)
        return Artifact.read(path, KIND, verify=True, approve=approve)
    except (BundleError, ConfigError, MemoryError):
        raise
    except ArtifactError as error:
        raise BundleError(f"bundle {path.name} is refused: {error}") from None
    except OSError as error:  # it cannot be read, or was pruned meanwhile
        raise BundleError(f"bundle {path.name} is refused: {_one_line(error)}") from None


def open_query_encoder(directory: Path, towers: TwoTower) -> QueryEncoder:
    """Return what encodes queries: the graph that a directory holds, or the query tower itself.

    Raises:
        BundleError: If there is a graph and it cannot be used.
    """
    if not (directory / GRAPH_FILE).exists():
        return QueryEncoder(towers)
    if not isinstance(towers.query, TextEncoder):
        raise BundleError(f"it holds {GRAPH_FILE}, but its query tower is no transformer")
    return QueryEncoder(towers, OnnxQueries(directory / GRAPH_FILE, towers.query))


def _open_index(directory: Path, device: str, alive: list[bool]) -> SearchEngine:
    if (directory / MilvusIndex.file).exists():
        elsewhere = MilvusIndex.open(directory / MilvusIndex.file)
        elsewhere.claim(directory.parent.resolve().parent)
        return elsewhere
    return read(directory / Index.file, device, np.array(alive, dtype=bool))


def _check_kinds(artifact: Artifact) -> None:
    """Assert that no file is code or a pickle, and that only timings are left out of the digest."""
    for name, recorded in artifact.manifest["files"].items():
        if name.lower().endswith(_EXECUTABLE):
            raise BundleError(f"it holds {name}; code and pickles are no part of a bundle")
        if recorded.get("measured") and name not in CURVE_FILES:
            raise BundleError(f"its manifest leaves {name} out of the digest; export it again")


def _check_agreement(
    content: Any, towers: TwoTower, index: SearchEngine, documents: pd.DataFrame, doc_ids: list[str]
) -> None:
    if towers.similarity != content["similarity"]:
        raise BundleError(f"its towers score by {towers.similarity}, its index by {content['similarity']}")
    if content["similarity"] not in SIMILARITIES:
        raise BundleError(f"its similarity {content['similarity']!r} cannot be served by inner product")
    dimensions = {towers.query.dimension, towers.document.dimension, index.dimension, content["dimension"]}
    if len(dimensions) != 1:
        raise BundleError(f"its towers, index and manifest differ in dimension: {sorted(dimensions)}")
    if documents["doc_id"].tolist() != doc_ids or len(set(doc_ids)) != len(doc_ids):
        raise BundleError("its ids and its catalogue do not list the same documents in the same order")
    missing = sorted({*DOCUMENTS.names} - {*documents.columns})
    if missing:
        raise BundleError(f"its catalogue has no column {missing[0]}")
    if not index.size == len(doc_ids) == content["documents"]:
        raise BundleError(f"its index has {index.size} vectors for {len(doc_ids)} documents")


def load_towers(directory: Path) -> TwoTower:
    """Load towers for inference.

    Raises:
        BundleError: If they cannot be read.
    """
    try:
        return TwoTower.load(directory).eval()
    except MemoryError:
        raise
    except Exception as error:  # digests were checked, so what it cannot read is another release's or damage
        raise BundleError(f"its towers cannot be loaded from {directory}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
