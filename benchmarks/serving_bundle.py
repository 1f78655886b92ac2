"""Bundles of any size for benchmarks/serving.py, put together in memory from honest parts.

Encoding a million documents with a transformer on a CPU takes hours, so the documents' vectors, and the
vectors that the index is searched with, are those of `cluster_vectors.draw`: structured like embeddings, the
queries held out. The towers have random weights, which cost what trained ones cost; every query is
normalised, tokenised and encoded in full, and then searched with its stand-in, since random towers would send
all queries to the same few lists of the index. The index is the automatic choice for these vectors. BM25 has
one document: no query of the benchmark asks it.

Shapes: N documents, B queries, D embedding.
"""

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from cluster_vectors import draw
from serving_clients import texts

from features.artifact import Artifact, publish
from features.lexical import LexicalIndex
from serving.build import IndexConfig
from serving.bundle import ID_LENGTH, KIND, Bundle
from serving.choose import choose
from serving.encode import QueryEncoder, columns_of
from serving.filters import Catalogue
from serving.index import read
from serving.onnx import FILE, OnnxQueries, write_graph
from serving.search import Query
from serving.store import Store
from serving.vectors import Vectors
from towers.encoders.text import Architecture, TextEncoder, TextTowerConfig
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

Kind = Literal["features", "transformer"]
Form = Literal["torch", "float32", "int8"]
Encode = Callable[[list[str]], Vectors]

DIMENSION = 128
INDEX = IndexConfig.model_validate({"target_recall": 0.98, "k": 100, "memory": "700MB", "device": "cpu"})
_HELD_OUT, _TUNING = 20_000, 1_000
_SAMPLE = 20_000  # titles that the tokenizer is trained on


def prepare(work: Path, size: int) -> dict[str, Any]:
    """Choose and write the index of so many documents, and what it is searched with; once for all runs."""
    work.mkdir(parents=True, exist_ok=True)
    facts_at = work / f"index-{size}.json"
    if not facts_at.exists():
        started = time.perf_counter()
        documents, queries = draw(size, _HELD_OUT, DIMENSION, seed=0)
        choice = choose(documents, queries[:_TUNING], INDEX, "cosine")
        choice.index.write(work / f"index-{size}.faiss")
        np.save(work / f"queries-{size}.npy", queries[_TUNING:])
        facts = {
            "factory": choice.factory,
            "parameters": choice.parameters,
            "ann_recall": choice.ann_recall,
            "met": choice.met,
            "note": choice.note,
            "seconds": round(time.perf_counter() - started),
        }
        facts_at.write_text(json.dumps(facts, indent=2) + "\n")
    loaded: dict[str, Any] = json.loads(facts_at.read_text())
    return loaded


class StandIns(QueryEncoder):
    """Encodes as it is asked to, cache included, and answers with held-out vectors that fit the index."""

    vectors: Vectors

    def encode(self, queries: Sequence[Query]) -> Vectors:
        """Return (B, D) stand-ins of queries; equal texts have equal ones."""
        super().encode(queries)
        return self.stand_ins([query.text or "" for query in queries])

    def stand_ins(self, asked: Sequence[str]) -> Vectors:
        """Return (B, D) vectors for texts."""
        return self.vectors[[zlib.crc32(text.encode()) % len(self.vectors) for text in asked]]


@dataclass(frozen=True)
class Subject:
    """A bundle, and the bare parts of its query path.

    Attributes:
        bundle: What is served.
        encoder: Its encoder.
        forms: Ways to encode texts, nothing around them: torch, and graphs where there are any.
        form: The one that is served.
        tokens: Mean tokens of a query, special ones included; None for a feature tower.
    """

    bundle: Bundle
    encoder: StandIns
    forms: dict[Form, Encode]
    form: Form
    tokens: float | None


def subject(work: Path, kind: Kind, size: int, form: Form, store: Path) -> Subject:
    """Put a bundle together, and a store that names it its champion."""
    documents = _documents(size)
    towers = _towers(kind, documents.head(_SAMPLE))
    forms: dict[Form, Encode] = {"torch": _by_torch(towers)}
    graphs: dict[Form, OnnxQueries] = {}
    tokens = None
    if isinstance(towers.query, TextEncoder):
        for precision in ("float32", "int8"):
            path = store / precision / FILE
            path.parent.mkdir(parents=True)
            write_graph(towers, path, precision)
            graphs[precision] = OnnxQueries(path, towers.query)
            forms[precision] = graphs[precision].encode
        tokens = float(np.mean([len(one) for one in towers.query.tokenise(texts(2_000, seed=99))]))
    encoder = StandIns(towers, graphs.get(form))
    encoder.vectors = np.load(work / f"queries-{size}.npy")
    facts = prepare(work, size)
    index = read(work / f"index-{size}.faiss", "cpu")
    index.set_parameters(facts["parameters"])
    artifact = _champion(store, size, facts)
    doc_ids = documents["doc_id"].tolist()
    bundle = Bundle(
        bundle_id=artifact.digest[:ID_LENGTH],
        artifact=artifact,
        towers=towers,
        index=index,
        documents=documents,
        doc_ids=doc_ids,
        rows={doc_id: row for row, doc_id in enumerate(doc_ids)},
        lexical=LexicalIndex.build(["none"], ["none"]),
        catalogue=Catalogue.build(documents),
        query_encoder=encoder,
    )
    return Subject(bundle, encoder, forms, form if form in forms else "torch", tokens)


def _documents(size: int) -> pd.DataFrame:
    frame = pd.DataFrame({"doc_id": [f"d{row:07d}" for row in range(size)], "title": texts(size, seed=1)})
    frame["text"] = ""
    frame["impressions"], frame["clicks"], frame["ctr"] = 10, 1, 0.1
    frame["sampling_probability"], frame["cold"] = 1 / size, False
    return frame


def _towers(kind: Kind, sample: pd.DataFrame) -> TwoTower:
    torch.manual_seed(0)
    config = TowersConfig(dimension=DIMENSION)
    if kind == "transformer":
        architecture = Architecture(layers=4, hidden=256, heads=4, intermediate=1024)
        text = TextTowerConfig(architecture=architecture)
        config = TowersConfig(dimension=DIMENSION, query=text, document=text)
    queries = pd.DataFrame(columns_of([Query(text) for text in texts(1_000, seed=2)]))
    return build_two_tower(config, sample, queries).eval()


def _by_torch(towers: TwoTower) -> Encode:
    def encode(asked: list[str]) -> Vectors:
        with torch.inference_mode():
            columns = columns_of([Query(text) for text in asked])
            vectors: Vectors = towers.encode_queries(towers.prepare_queries(columns)).numpy()
            return vectors

    return encode


def _champion(store: Path, size: int, index: dict[str, Any]) -> Artifact:
    """Publish a manifest, which is all that a server reads of a bundle once that is in memory."""
    content = {
        "query_inputs": ["text"],
        "exclude_seen": False,
        "history_length": None,
        "similarity": "cosine",
        "dimension": DIMENSION,
        "documents": size,
        "index": {"factory": index["factory"], "search": index["parameters"]},
    }
    opened = Store(store)
    opened.bundles.mkdir(parents=True)
    with publish(store / "new", KIND, content) as staging:
        (staging / "about.txt").write_text("a bundle in memory\n")
    bundle_id = Artifact.read(store / "new").digest[:ID_LENGTH]
    (store / "new").rename(opened.bundle_path(bundle_id))
    opened.set_champion(bundle_id, "benchmark")
    return opened.bundle(bundle_id)
