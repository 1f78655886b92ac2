"""What is evaluated: queries with the relevance of documents, from the test table or from judgements.

Shapes: Q queries, N documents, J judged pairs, S shown documents.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.errors import SchemaError
from features.text import normalise
from towers.data import Lists, document_index, locate_lists, query_frame
from towers.metrics import Floats, Integers, Judgements, NothingRelevantError

QRELS_COLUMNS = ("query_id", "query_text", "doc_id", "relevance")


@dataclass(frozen=True)
class ShownLists:
    """Lists that were shown, sorted by query.

    Attributes:
        query: (lists,) row of the query, ascending.
        documents: The documents of each list.
        clicked: (S,) whether each of them was clicked.
    """

    query: Integers
    documents: Lists
    clicked: NDArray[np.bool_]

    @classmethod
    def none(cls) -> "ShownLists":
        """Return no lists at all."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, Lists(nothing, np.zeros(1, dtype=np.int64)), np.zeros(0, dtype=bool))

    def by_query(self, queries: int) -> Lists:
        """Return the shown documents of each of Q queries, all its lists end to end."""
        first = np.searchsorted(self.query, np.arange(queries + 1))
        return Lists(self.documents.values, self.documents.offsets[first])

    def of_queries(self, rows: Integers, queries: int) -> "ShownLists":
        """Return the lists of some of Q queries (rows ascending), renumbered from 0."""
        position = np.full(queries, -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        kept = np.flatnonzero(position[self.query] >= 0)
        values, owner = self.documents.take(kept)
        offsets = np.searchsorted(owner, np.arange(len(kept) + 1))
        clicked = self.clicked[np.repeat(position[self.query] >= 0, np.diff(self.documents.offsets))]
        return ShownLists(position[self.query[kept]], Lists(values, offsets), clicked)


@dataclass(frozen=True)
class EvaluationSet:
    """Queries that each have a relevant document, and all that evaluation needs beside them.

    Attributes:
        queries: Q rows: `query_id, query_text, history, user_id, frequency, seen_query`.
        documents: N rows of documents.parquet.
        judgements: Of these queries.
        excluded: Documents that are not to be ranked, for each query.
        lists: Shown lists of these queries.
        train_frequency: Training clicks of each distinct training query.
        counts: How many queries, judgements and lists came in and were left out, by reason.
    """

    queries: pd.DataFrame
    documents: pd.DataFrame
    judgements: Judgements
    excluded: Lists
    lists: ShownLists
    train_frequency: Integers
    counts: dict[str, int]


def read_test(examples: Path) -> EvaluationSet:
    """Read the test queries of an examples artifact.

    Raises:
        SchemaError: If the tables do not fit each other.
        NothingRelevantError: If no query has a relevant document.
    """
    documents = pd.read_parquet(examples / "documents.parquet")
    index = document_index(documents)
    where = f"{examples}/test.parquet"
    table = pq.read_table(examples / "test.parquet")
    queries = query_frame(table)
    for column in ("query_id", "frequency", "seen_query"):
        queries[column] = table[column].to_pandas()
    _refuse_repeats(queries["query_id"], where)
    relevant = locate_lists(index, table["relevant_doc_ids"], f"{where}: relevant_doc_ids")
    grade = pc.list_flatten(table["relevance"]).to_numpy().astype(np.float64)
    if len(grade) != len(relevant.values) or not np.isfinite(grade).all():
        raise SchemaError(f"{where}: relevance must hold one finite number for each of relevant_doc_ids")
    query = np.repeat(np.arange(len(queries)), np.diff(relevant.offsets))
    frequency = np.asarray(_train_clicks(examples), dtype=np.int64)
    excluded = locate_lists(index, table["excluded_doc_ids"], f"{where}: excluded_doc_ids")
    lists = _read_lists(examples, queries["query_id"], index)
    everything = EvaluationSet(
        queries,
        documents,
        _distinct(len(queries), query, relevant.values, grade),
        excluded,
        lists,
        frequency,
        {},
    )
    return _evaluable(everything, where)


def read_qrels(examples: Path, qrels: Path) -> EvaluationSet:
    """Read judged queries: Parquet with `query_id, query_text, doc_id, relevance`.

    A judged document that the catalogue does not have is counted and dropped, since nothing can retrieve it.
    How often a query was clicked in training is looked up by its normalised text.

    Raises:
        SchemaError: If the file lacks a column, holds a null, or gives a query two texts.
        NothingRelevantError: If no query has a relevant document in the catalogue.
    """
    documents = pd.read_parquet(examples / "documents.parquet")
    judged = _read_judged(qrels)
    distinct = judged[["query_id", "query_text"]].drop_duplicates(ignore_index=True)
    _refuse_repeats(distinct["query_id"], f"{qrels}, as a query with several texts,")
    clicks = _train_clicks(examples)
    key = distinct["query_text"].map(normalise)
    queries = distinct.assign(
        history=pd.Series([[] for _ in range(len(distinct))], dtype=object),
        user_id=pd.Series([None] * len(distinct), dtype=object),
        frequency=key.map(clicks).fillna(0).astype(np.int64),
        seen_query=key.isin(clicks.index),
    )
    document = document_index(documents).get_indexer(pd.Index(judged["doc_id"])).astype(np.int64)
    query = pd.Index(queries["query_id"]).get_indexer(pd.Index(judged["query_id"])).astype(np.int64)
    known = document >= 0
    grade = judged["relevance"].to_numpy(dtype=np.float64)
    judgements = _distinct(len(queries), query[known], document[known], grade[known])
    nothing = Lists(np.zeros(0, dtype=np.int64), np.zeros(len(queries) + 1, dtype=np.int64))
    counts = {"judgements": len(judged), "judged_not_in_catalogue": int((~known).sum())}
    frequency = np.asarray(clicks, dtype=np.int64)
    everything = EvaluationSet(queries, documents, judgements, nothing, ShownLists.none(), frequency, counts)
    return _evaluable(everything, str(qrels))


def _read_judged(qrels: Path) -> pd.DataFrame:
    if not qrels.is_file():
        raise SchemaError(f"{qrels} does not exist; qrels are a Parquet file with {', '.join(QRELS_COLUMNS)}")
    names = pq.read_schema(qrels).names
    missing = [column for column in QRELS_COLUMNS if column not in names]
    if missing:
        raise SchemaError(f"{qrels} lacks the column {missing[0]}; qrels have {', '.join(QRELS_COLUMNS)}")
    judged = pd.read_parquet(qrels, columns=list(QRELS_COLUMNS))
    holes = judged.isna().any()
    if holes.any():
        raise SchemaError(f"{qrels} holds rows without {holes.idxmax()}; every judgement needs it")
    for column in ("query_id", "query_text", "doc_id"):
        judged[column] = judged[column].astype(str)
    return judged


def _refuse_repeats(query_id: "pd.Series[str]", where: str) -> None:
    repeated = query_id[query_id.duplicated()]
    if len(repeated):
        raise SchemaError(
            f"{where} holds query_id {repeated.iloc[0]!r} more than once; query ids are distinct"
        )


def _train_clicks(examples: Path) -> "pd.Series[int]":
    counted = pq.read_table(examples / "train.parquet", columns=["query_key"])["query_key"].value_counts()
    return pd.Series(counted.field("counts").to_numpy(), index=pd.Index(counted.field("values").to_pandas()))


def _read_lists(examples: Path, query_id: "pd.Series[str]", index: pd.Index) -> ShownLists:
    where = f"{examples}/test_lists.parquet"
    table = pq.read_table(examples / "test_lists.parquet")
    owner = pd.Index(query_id).get_indexer(table["query_id"].to_pandas()).astype(np.int64)
    if (owner < 0).any():
        raise SchemaError(f"{where} holds a list whose query_id is not in test.parquet; build examples again")
    order = np.argsort(owner, kind="stable")
    table = table.take(order)
    documents = locate_lists(index, table["doc_ids"], f"{where}: doc_ids")
    clicked = pc.list_flatten(table["clicked"]).to_numpy().astype(bool)
    if len(clicked) != len(documents.values):
        raise SchemaError(f"{where}: clicked must hold one value for each of doc_ids")
    return ShownLists(owner[order], documents, clicked)


def _distinct(queries: int, query: Integers, document: Integers, grade: Floats) -> Judgements:
    """Keep the best grade of a pair that is judged more than once."""
    best = (
        pd.DataFrame({"query": query, "document": document, "grade": grade})
        .groupby(["query", "document"], as_index=False)["grade"]
        .max()
    )
    columns = (best[name].to_numpy() for name in ("query", "document", "grade"))
    return Judgements(queries, *columns)


def _evaluable(read: EvaluationSet, where: str) -> EvaluationSet:
    """Leave out relevant documents that are not to be ranked, then queries without a relevant one."""
    judgements = read.judgements
    documents = len(read.documents)
    hidden_document, hidden_query = read.excluded.take(np.arange(len(read.queries)))
    hidden = np.isin(
        judgements.query * documents + judgements.document, hidden_query * documents + hidden_document
    )
    rankable = judgements.only(~hidden)
    rows = np.flatnonzero(rankable.relevant_count() > 0)
    counts = {
        "queries": len(read.queries),
        "evaluated": len(rows),
        "without_relevant": len(read.queries) - len(rows),
        "relevant_but_excluded": int((hidden & (judgements.grade > 0)).sum()),
        **read.counts,
    }
    if not len(rows):
        raise NothingRelevantError(
            f"{where}: none of {len(read.queries)} queries has a relevant document to rank; "
            "hold out more of the log, or judge documents of this catalogue"
        )
    values, owner = read.excluded.take(rows)
    excluded = Lists(values, np.searchsorted(owner, np.arange(len(rows) + 1)))
    lists = read.lists.of_queries(rows, len(read.queries))
    counts["lists"] = len(lists.query)
    queries = read.queries.iloc[rows].reset_index(drop=True)
    return EvaluationSet(
        queries, read.documents, rankable.take(rows), excluded, lists, read.train_frequency, counts
    )
