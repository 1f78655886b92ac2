"""Retrieval quality during training: the whole corpus ranked exactly for a sample of validation queries.

It decides when to stop and which weights to keep; the numbers to report come from `towers.evaluate`.

Shapes: Q queries, D documents, S shown documents, E embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.errors import ConfigError
from towers.batch import Features
from towers.data import Floats, Ints, Lists, document_index, locate_lists, query_frame
from towers.metrics import LIST_AUC, Judgements, list_auc, parse_metric, per_query

REPORTED = ("R@100", "nDCG@10", LIST_AUC)
"""What every validation measures, beside the metric that decides."""

_ROWS_AT_ONCE = 4096
_QUERIES_AT_ONCE = 256


class Towers(Protocol):
    """The part of the two towers that validation uses."""

    def encode_queries(self, features: Features) -> Tensor:
        """Return one embedding per prepared query."""
        ...

    def encode_documents(self, features: Features) -> Tensor:
        """Return one embedding per prepared document."""
        ...


@dataclass(frozen=True)
class ShownLists:
    """Shown lists of the kept queries: list l is rows `start[l]:start[l + 1]` of the rest."""

    query: Ints
    document: Ints
    clicked: Any
    start: Ints


class Validation:
    """Validation queries, prepared once, and their judgements.

    Ties are broken by an order of the documents drawn once from a fixed seed, so that equal scores rank at
    random instead of in catalogue order.
    """

    def __init__(self, examples: Path, documents: pd.DataFrame, max_queries: int, metric: str) -> None:
        """Read the validation tables of an examples artifact.

        Args:
            examples: The artifact.
            documents: Its catalogue.
            max_queries: At most so many queries, evenly spaced over the table.
            metric: The one that decides.

        Raises:
            ConfigError: If there is no validation query.
        """
        table = pq.read_table(examples / "validation.parquet")
        if table.num_rows == 0:
            raise ConfigError(
                f"{examples}/validation.parquet has no queries to stop early by; set early_stopping to null "
                "(no validation), or hold out more of the log"
            )
        kept = np.unique(
            np.linspace(0, table.num_rows - 1, min(max_queries, table.num_rows)).astype(np.int64)
        )
        table = table.take(pa.array(kept))
        index = document_index(documents)
        where = f"{examples}/validation.parquet"
        relevant = locate_lists(index, table["relevant_doc_ids"], f"{where}: relevant_doc_ids")
        document, query = relevant.take(np.arange(table.num_rows))
        grade = pc.list_flatten(table["relevance"]).to_numpy().astype(np.float64)
        self.frame = query_frame(table)
        self._judgements = Judgements(table.num_rows, query, document, grade)
        self._seen = locate_lists(index, table["excluded_doc_ids"], f"{where}: excluded_doc_ids")
        self._lists = _read_lists(examples, index, table["query_id"].to_pandas())
        self._order = np.random.default_rng(0).permutation(len(documents))
        self._position = np.argsort(self._order)
        self._names = tuple(dict.fromkeys((metric, *REPORTED)))

    def measure(
        self, towers: Towers, queries: Features, documents: Features, device: torch.device
    ) -> dict[str, float]:
        """Rank the corpus for every query and average each metric over the queries where it is defined.

        Args:
            towers: Should be in evaluation mode.
            queries: `frame`, prepared.
            documents: The catalogue, prepared.
            device: Where the towers are.

        Returns:
            Metric name → mean; a metric that no query defines is left out.
        """
        with torch.inference_mode():
            query_QE = _encode(towers.encode_queries, queries, device)
            document_DE = _encode(towers.encode_documents, documents, device)
            ranked_QK, shown = self._rank(query_QE, document_DE)
        gain_QK = self._judgements.gains(ranked_QK)
        values: dict[str, Floats] = {}
        for name in self._names:
            if name == LIST_AUC:
                values[name] = list_auc(shown, self._lists.clicked, self._lists.start)
            else:
                values[name] = per_query(parse_metric(name), gain_QK, self._judgements)
        return {name: float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}

    def _rank(self, query_QE: Tensor, document_DE: Tensor) -> tuple[Ints, Floats]:
        """Return (Q, K) the best documents of each query, and the scores of the shown documents."""
        cutoff = max(parse_metric(name).cutoff for name in self._names if name != LIST_AUC)
        order = torch.from_numpy(self._order).to(document_DE.device)
        shuffled_DE = document_DE[order]
        ranked = []
        for first in range(0, len(query_QE), _QUERIES_AT_ONCE):
            score_QD = query_QE[first : first + _QUERIES_AT_ONCE] @ shuffled_DE.T
            seen, query = self._seen.take(np.arange(first, first + len(score_QD)))
            score_QD[torch.from_numpy(query), torch.from_numpy(self._position[seen])] = -torch.inf
            best = score_QD.topk(min(cutoff, score_QD.shape[1]), dim=1)
            ranked.append(torch.where(best.values > -torch.inf, order[best.indices], -1).cpu())
        pairs = (
            query_QE[torch.from_numpy(self._lists.query)]
            * document_DE[torch.from_numpy(self._lists.document)]
        )
        return torch.cat(ranked).numpy(), pairs.sum(1).double().cpu().numpy()


def _encode(encode: Any, features: Features, device: torch.device) -> Tensor:
    rows = torch.arange(len(features))
    parts = [encode(features.take(chunk).to(device)) for chunk in torch.split(rows, _ROWS_AT_ONCE)]
    return torch.cat(parts).float()


def _read_lists(examples: Path, index: Any, query_ids: Any) -> ShownLists:
    table = pq.read_table(examples / "validation_lists.parquet")
    query = pd.Index(query_ids).get_indexer(table["query_id"].to_pandas()).astype(np.int64)
    table = table.take(pa.array(np.flatnonzero(query >= 0)))
    query = query[query >= 0]
    lists: Lists = locate_lists(index, table["doc_ids"], f"{examples}/validation_lists.parquet: doc_ids")
    document, member = lists.take(np.arange(len(query)))
    clicked = pc.list_flatten(table["clicked"]).to_numpy(zero_copy_only=False).astype(bool)
    return ShownLists(query[member], document, clicked, lists.offsets)
