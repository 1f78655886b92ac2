"""What stands in every table: the towers, and the baselines that they must beat.

Shapes: Q queries, N documents, D embedding.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from features.lexical import LexicalIndex
from features.text import document_text
from towers.batch import Features
from towers.ranking import System as System
from towers.two_tower import TwoTower

SystemName = Literal["towers", "random", "popularity", "ctr", "bm25"]
SYSTEMS: tuple[SystemName, ...] = get_args(SystemName)

_ENCODED_AT_ONCE = 1024


class Towers:
    """A trained model: the similarity of the query's and the document's embeddings, by exact search."""

    name = "towers"

    def __init__(self, model: TwoTower, documents: pd.DataFrame) -> None:
        """Encode the corpus once.

        Args:
            model: Put into evaluation mode.
            documents: N rows of a document frame.
        """
        self.model = model.eval()
        with torch.inference_mode():
            self.document_ND = _encode(model.encode_documents, model.prepare_documents(documents))

    def score(self, queries: pd.DataFrame) -> NDArray[np.float32]:
        """Score every document (Q, N) by the similarity that was trained."""
        with torch.inference_mode():
            query_QD = _encode(self.model.encode_queries, self.model.prepare_queries(queries))
            score_QN: NDArray[np.float32] = self.model.score(query_QD, self.document_ND).numpy()
            return score_QN


class RandomScores:
    """A score in [0, 1) that is a function of seed, query_id and doc_id, and of nothing else."""

    name = "random"

    def __init__(self, doc_ids: Sequence[str], seed: int) -> None:
        self.seed = seed
        self.document_key = _keys(doc_ids, "document", seed)

    def score(self, queries: pd.DataFrame) -> NDArray[np.float32]:
        """Score every document (Q, N)."""
        query_key = _keys(queries["query_id"], "query", self.seed)
        bits_QN = query_key[:, None] ^ self.document_key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's mixing
            bits_QN ^= bits_QN >> np.uint64(shift)
            bits_QN *= np.uint64(factor)
        return (bits_QN >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


class Counter:
    """One number a document, whatever the query: its clicks, or its smoothed click-through rate."""

    def __init__(self, name: str, value: NDArray[np.float64]) -> None:
        """Keep the number.

        Args:
            name: What the tables call it.
            value: (N,) counted before the cut.
        """
        self.name = name
        self.value = value.astype(np.float32)

    def score(self, queries: pd.DataFrame) -> NDArray[np.float32]:
        """Score every document (Q, N)."""
        return np.broadcast_to(self.value, (len(queries), len(self.value)))


class Bm25:
    """BM25 of the query's text; where the history is the query, of the titles in it."""

    name = "bm25"

    def __init__(self, documents: pd.DataFrame) -> None:
        titles, texts = documents["title"].tolist(), documents["text"].tolist()
        doc_ids = documents["doc_id"].tolist()
        self.title = dict(zip(doc_ids, titles, strict=True))
        corpus = [document_text(title, text) for title, text in zip(titles, texts, strict=True)]
        self.index = LexicalIndex.build(doc_ids, corpus)

    def score(self, queries: pd.DataFrame) -> NDArray[np.float32]:
        """Score every document (Q, N)."""
        return self.index.score(
            [
                text if isinstance(text, str) else "\n".join(self.title.get(doc_id, "") for doc_id in history)
                for text, history in zip(queries["query_text"], queries["history"], strict=True)
            ]
        )


def build_system(name: SystemName, documents: pd.DataFrame, model: Path, seed: int) -> System:
    """Make a system ready to score.

    Args:
        name: Which one.
        documents: The documents table of the examples.
        model: Directory of saved towers; read by `towers` alone.
        seed: Read by `random` alone.
    """
    if name == "towers":
        return Towers(TwoTower.load(model), documents)
    if name == "random":
        return RandomScores(documents["doc_id"].tolist(), seed)
    if name == "bm25":
        return Bm25(documents)
    column = "clicks" if name == "popularity" else "ctr"
    return Counter(name, documents[column].to_numpy(dtype=np.float64))


def _encode(encode: Callable[[Features], torch.Tensor], features: Features) -> torch.Tensor:
    rows = torch.arange(len(features))
    parts = [
        encode(features.take(rows[first : first + _ENCODED_AT_ONCE]))
        for first in range(0, len(rows), _ENCODED_AT_ONCE)
    ]
    return torch.cat(parts).float().cpu()


def _keys(ids: Iterable[str], kind: str, seed: int) -> NDArray[np.uint64]:
    text = (f"{seed}:{kind}:{one}".encode("utf-8", "surrogatepass") for one in ids)
    return np.array(
        [int.from_bytes(hashlib.sha256(one).digest()[:8], "big") for one in text], dtype=np.uint64
    )
