"""Queries with recorded answers that travel in a bundle and are asked again whenever it is loaded.

They catch what digests cannot: parts that are each intact but do not belong together, and a library that
computes something else than the one that built the bundle. Each canary holds the exact neighbours (full
scan) and what the index answered at its shipped parameters. Loading checks three things: the query tower
and the index together give the recorded answer; the document tower and the catalogue together give the
recorded exact scores; no score is non-finite.

Shapes: C canaries, D embedding.
"""

from typing import Any, cast

import numpy as np
import pandas as pd

from features.errors import BundleError
from serving.encode import QueryEncoder, encode_documents, encode_queries
from serving.index import Neighbours, SearchEngine
from serving.search import Query
from serving.tune import exact_search
from serving.vectors import Vectors
from towers.two_tower import TwoTower

CANARIES = 8
DEPTH = 10
_TOLERANCE = 1e-3  # of the largest score; another CPU or thread count stays below 1e-5


def query_frame(text: str | None, history: list[str], user_id: str | None = None) -> pd.DataFrame:
    """Return the query frame of one query, as training has it."""
    return pd.DataFrame({"query_text": [text], "history": [history], "user_id": [user_id]}, dtype=object)


def choose(queries: pd.DataFrame, documents: pd.DataFrame) -> pd.DataFrame:
    """Return up to `CANARIES` queries spread over a query frame.

    Where the log has fewer, documents' titles (or one-document histories) fill up.
    """
    chosen = spread(queries, CANARIES)
    missing = CANARIES - len(chosen)
    if missing == 0:
        return chosen
    spare = spread(documents, missing)
    if len(queries) and queries["query_text"].notna().any():
        titles = [title for title in spare["title"] if title.strip()]
        extra = [query_frame(title, []) for title in titles]
    else:
        extra = [query_frame(None, [doc_id]) for doc_id in spare["doc_id"]]
    return pd.concat([chosen, *extra], ignore_index=True)


def spread(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return at most `count` rows at even distances, the same ones each time."""
    if len(frame) <= count:
        return frame.reset_index(drop=True)
    rows = np.linspace(0, len(frame) - 1, count).astype(np.int64)
    return frame.iloc[rows].reset_index(drop=True)


def record(
    queries: pd.DataFrame,
    query_CD: Vectors,
    document_ND: Vectors,
    served: list[Neighbours],
    doc_ids: list[str],
) -> list[dict[str, Any]]:
    """Return the canaries as JSON: the query, its exact neighbours, and what is served.

    Args:
        queries: As `choose` returned them.
        query_CD: Their vectors from the query tower itself.
        document_ND: The catalogue's.
        served: What the index answers them, encoded as searches are.
        doc_ids: The id of each catalogue row.
    """
    exact = exact_search(query_CD, document_ND, DEPTH)
    return [
        {"query": _query_json(query), "exact": _hits_json(true, doc_ids), "served": _hits_json(got, doc_ids)}
        for query, true, got in zip(queries.to_dict("records"), exact, served, strict=True)
    ]


def served(queries: pd.DataFrame, encoder: QueryEncoder, index: SearchEngine) -> list[Neighbours]:
    """Return what the index answers the canaries."""
    asked = [
        Query(entry["text"], tuple(entry["history"]), entry["user_id"])
        for entry in map(_query_json, queries.to_dict("records"))
    ]
    return index.search(encoder.encode(asked), DEPTH)


def check_served(
    canaries: list[dict[str, Any]], encoder: QueryEncoder, index: SearchEngine, doc_ids: list[str]
) -> None:
    """Ask the canaries again, on the way that searches go.

    Raises:
        BundleError: If there are none, or an answer differs from the recorded one by more than ties allow.
    """
    if not canaries:
        raise BundleError("the bundle has no canary queries")
    for place, (canary, got) in enumerate(
        zip(canaries, served(_frame_of(canaries), encoder, index), strict=True)
    ):
        if not _same_answer(_hits_json(got, doc_ids), canary["served"]):
            raise BundleError(f"canary query {place} does not get its recorded neighbours from the index")


def check_exact(
    canaries: list[dict[str, Any]], towers: TwoTower, documents: pd.DataFrame, rows: dict[str, int]
) -> None:
    """Encode the canaries and their exact neighbours by both towers and compare the scores.

    Args:
        canaries: What `record` returned.
        towers: As loaded from the bundle.
        documents: The bundle's catalogue.
        rows: The catalogue row of each doc_id.

    Raises:
        BundleError: If a score differs from the recorded one.
    """
    query_CD = encode_queries(towers, _frame_of(canaries))
    wanted = sorted({hit["doc_id"] for canary in canaries for hit in canary["exact"]}, key=rows.__getitem__)
    part = documents.iloc[[rows[doc_id] for doc_id in wanted]].reset_index(drop=True)
    vectors = dict(zip(wanted, encode_documents(towers, part), strict=True))
    for place, (canary, query_D) in enumerate(zip(canaries, query_CD, strict=True)):
        again = [float(vectors[hit["doc_id"]] @ query_D) for hit in canary["exact"]]
        if not _close(again, [hit["score"] for hit in canary["exact"]]):
            raise BundleError(f"canary query {place} does not get its recorded scores from the towers")


def _frame_of(canaries: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.concat([query_frame(**canary["query"]) for canary in canaries], ignore_index=True)


def _same_answer(got: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> bool:
    scores = [hit["score"] for hit in recorded]
    if len(got) != len(recorded) or not _close([hit["score"] for hit in got], scores):
        return False
    known = {hit["doc_id"] for hit in recorded}
    # a document that was not recorded may stand only in a tie with the last one
    return all(hit["doc_id"] in known or _close([hit["score"]], scores[-1:]) for hit in got)


def _close(scores: list[float], recorded: list[float]) -> bool:
    largest = max([1e-6, *(abs(score) for score in recorded)])
    return bool(np.allclose(scores, recorded, rtol=0.0, atol=_TOLERANCE * largest))


def _hits_json(found: Neighbours, doc_ids: list[str]) -> list[dict[str, Any]]:
    return [
        {"doc_id": doc_ids[row], "score": float(score)}
        for row, score in zip(found.rows, found.scores, strict=True)
    ]


def _query_json(query: dict[Any, Any]) -> dict[str, Any]:
    text, user_id = query["query_text"], query["user_id"]
    return {
        "text": None if pd.isna(text) else cast(str, text),
        "history": [str(doc_id) for doc_id in query["history"]],
        "user_id": None if pd.isna(user_id) else cast(str, user_id),
    }
