"""The files of a simulation, as `features.simulate` describes them."""

import gzip
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.shop.catalogue import Catalogue
from features.shop.config import END, SimulateConfig
from features.shop.intents import KINDS, relevance
from features.shop.log import Page, Searches, Shop
from features.tables import IMPRESSIONS

_TEXTS_AT_ONCE = 256
_LONGEST = 100  # places in the longest list that a configuration allows
_QRELS = pa.schema([("query_text", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int64())])


def write_documents(
    path: Path, catalogue: Catalogue, config: SimulateConfig, rng: np.random.Generator
) -> None:
    """Write the catalogue as gzipped JSON lines; cold documents are dated from `recent_from` on."""
    uniform = rng.random(len(catalogue))
    year_before = config.start - timedelta(days=365)
    first = np.where(catalogue.cold, config.recent_from.timestamp(), year_before.timestamp())
    last = np.where(catalogue.cold, END.timestamp(), config.start.timestamp())
    seconds = (first + uniform * (last - first)).astype(np.int64).tolist()
    records = catalogue.frame.to_dict(orient="records")
    # no name and no time in the gzip header: equal content gives equal bytes
    with path.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        for record, second in zip(records, seconds, strict=True):
            record["updated_at"] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def write_document_truth(path: Path, catalogue: Catalogue) -> None:
    """Write what is true of each document."""
    ids = catalogue.frame["doc_id"].to_numpy()
    copied = catalogue.copy_of >= 0
    columns = {
        "doc_id": pa.array(ids, pa.string()),
        "popularity": pa.array(catalogue.popularity),
        "quality": pa.array(catalogue.quality),
        "cold": pa.array(catalogue.cold),
        "copy_of": pa.array(ids[catalogue.copy_of], pa.string(), mask=~copied),
    }
    pq.write_table(pa.table(columns), path)


def write_impressions(
    directory: Path, shop: Shop, searches: Searches, pages: Iterable[Page]
) -> dict[str, int]:
    """Write the log, and the mean examination of each place beside it; return the counts."""
    counts = {"impressions": 0, "lists": 0, "clicks": 0, "lists_with_click": 0}
    examination, lists = np.zeros(_LONGEST), np.zeros(_LONGEST, dtype=np.int64)
    doc_ids, texts = (
        pa.array(shop.catalogue.frame["doc_id"], pa.string()),
        pa.array(shop.texts.text, pa.string()),
    )
    with pq.ParquetWriter(directory / "impressions.parquet", IMPRESSIONS, compression="zstd") as writer:
        for page in pages:
            clicked = page.clicks.clicked
            writer.write_table(_page_table(page, searches, doc_ids, texts))
            counts["impressions"] += clicked.size
            counts["lists"] += len(clicked)
            counts["clicks"] += int(clicked.sum())
            counts["lists_with_click"] += int(clicked.any(axis=1).sum())
            examination[: clicked.shape[1]] += page.clicks.examination.sum(axis=0)
            lists[: clicked.shape[1]] += len(clicked)
    longest = int((lists > 0).sum())
    truth = {
        "position": np.arange(1, longest + 1),
        "examination": examination[:longest] / lists[:longest],
        "lists": lists[:longest],
    }
    pq.write_table(pa.table(truth), directory / "truth" / "positions.parquet")
    return counts


def _page_table(page: Page, searches: Searches, doc_ids: pa.Array, texts: pa.Array) -> pa.Table:
    lists, places = page.document.shape
    search = np.repeat(np.arange(page.first, page.first + lists), places)
    text = searches.text[search]
    clicked = page.clicks.clicked.ravel()
    columns = [
        _numbered("list-", search, 8),
        _numbered("query-", text, 6),
        texts.take(pa.array(text)),
        _numbered("user-", searches.user[search], 6),
        pa.array(searches.time[search], pa.timestamp("us", tz="UTC")),
        doc_ids.take(pa.array(page.document.ravel())),
        pa.array(np.tile(np.arange(1, places + 1, dtype=np.int32), lists)),
        pa.array(clicked),
        pa.array(page.clicks.dwell_ms.ravel(), mask=~clicked),
    ]
    return pa.Table.from_arrays(columns, schema=IMPRESSIONS)


def _numbered(prefix: str, number: NDArray[np.int64], digits: int) -> pa.Array:
    distinct, place = np.unique(number, return_inverse=True)
    names = pa.array([f"{prefix}{value:0{digits}d}" for value in distinct.tolist()], pa.string())
    return names.take(pa.array(place))


def write_qrels(path: Path, shop: Shop, judged: NDArray[np.int64]) -> dict[str, int]:
    """Write every relevant document of the judged texts; return the counts."""
    doc_ids, texts = (
        pa.array(shop.catalogue.frame["doc_id"], pa.string()),
        pa.array(shop.texts.text, pa.string()),
    )
    everything = np.arange(len(shop.catalogue))[None, :]
    rows = 0
    with pq.ParquetWriter(path, _QRELS, compression="zstd") as writer:
        for start in range(0, len(judged), _TEXTS_AT_ONCE):
            part = judged[start : start + _TEXTS_AT_ONCE]
            grade = relevance(shop.intents, shop.catalogue, shop.texts.intent[part][:, None], everything)
            text, document = np.nonzero(grade)
            columns = [
                texts.take(pa.array(part[text])),
                doc_ids.take(pa.array(document)),
                pa.array(grade[text, document].astype(np.int64)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=_QRELS))
            rows += len(text)
    return {"queries": len(judged), "rows": rows}


def write_query_truth(path: Path, shop: Shop, searches: Searches, judged: NDArray[np.int64]) -> None:
    """Write what is true of each text that was asked or judged."""
    asked = np.bincount(searches.text, minlength=len(shop.texts))
    row = np.union1d(np.nonzero(asked)[0], judged)
    columns = {
        "query_text": pa.array([shop.texts.text[place] for place in row.tolist()], pa.string()),
        "kind": pa.array([KINDS[kind] for kind in shop.intents.kind[shop.texts.intent[row]].tolist()]),
        "misspelled": pa.array(shop.texts.misspelled[row]),
        "reworded": pa.array(shop.texts.reworded[row]),
        "asked": pa.array(asked[row]),
        "judged": pa.array(np.isin(row, judged)),
    }
    pq.write_table(pa.table(columns), path)
