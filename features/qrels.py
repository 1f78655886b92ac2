"""Judged queries (qrels): which documents are how relevant to which query."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from features.config import Config
from features.engine import EngineConfig, connect
from features.errors import ConfigError, SchemaError
from features.readers.files import describe, digests, find_files
from features.readers.relations import Relation, Wanted
from features.readers.values import define_macros

QRELS: Final = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query_text", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("relevance", pa.float64(), nullable=False),
    ]
)
"""Columns of judged queries; 0 is judged and not relevant."""


class QrelsColumns(Config):
    """Which columns of a table of judgements are what."""

    query_id: str | None = Field(
        None, description="Column with the query's id; without one its text is its id."
    )
    query_text: str = Field("query_text", description="Column with the text of the query.")
    doc_id: str = Field("doc_id", description="Column with the document.")
    relevance: str = Field("relevance", description="Column with the grade.")


class QrelsConfig(Config):
    """Where the judged queries are, and in which format."""

    path: Path = Field(description="The file of judgements, plain or .gz.")
    format: Literal["columns", "judgments", "trec"] | None = Field(
        None,
        description="columns: CSV, JSON lines or Parquet; judgments: OpenSearch's judgement list; trec: "
        "`query 0 document grade` lines. Null tells it by the name: .json judgments, .txt .qrels .trec trec.",
    )
    queries: Path | None = Field(
        None,
        description="For trec: lines of a query's id, a tab and its text. Null takes the file beside `path` "
        "that is called the same with `.queries.tsv` at its end, where there is one.",
    )
    columns: QrelsColumns = Field(QrelsColumns(), description="Which columns are what.")
    gains: dict[float, float] | None = Field(
        None,
        description="Relevance of each grade, such as {100: 3, 10: 2, 1: 1, 0: 0}; null keeps the grade.",
    )

    def files(self) -> list[Path]:
        """Return every file that is read.

        Raises:
            SchemaError: If one does not exist.
        """
        texts = self.texts()
        return find_files([self.path, *([texts] if texts else [])])

    def same_format(self, other: "QrelsConfig") -> bool:
        """Whether another file of judgements is in the format of this one."""
        return _format_of(self) == _format_of(other)

    def texts(self) -> Path | None:
        """Return the file with the texts of trec's queries, if one is given or stands beside them."""
        if self.queries is not None or _format_of(self) != "trec":
            return self.queries
        name = self.path.name.removesuffix(".gz").rpartition(".")[0]
        beside = self.path.with_name(f"{name}.queries.tsv")
        return beside if beside.is_file() else None


def read_qrels(config: QrelsConfig) -> pd.DataFrame:
    """Read judged queries.

    Returns:
        The columns of `QRELS`, sorted by query and document; of two judgements of a pair the higher counts.

    Raises:
        SchemaError: If a file is missing, damaged, empty or not in its format, or a grade is no number.
        ConfigError: If a trec file comes without its queries, or a grade has no gain.
    """
    digests(config.files())
    read = {"columns": _read_columns, "judgments": _read_judgments, "trec": _read_trec}[_format_of(config)]
    judged = read(config)
    name = config.path.name
    judged["relevance"] = _grades(judged["relevance"], config)
    for column in ("query_id", "query_text", "doc_id"):
        empty = judged[column].isna() | (judged[column] == "")
        if empty.any():
            raise SchemaError(f"{name}: judgement {int(np.argmax(empty)) + 1} has no {column}")
    if judged.empty:
        raise SchemaError(f"{name} is empty: no judgements")
    best = judged.groupby(["query_id", "query_text", "doc_id"], as_index=False, sort=True)["relevance"].max()
    result: pd.DataFrame = best[QRELS.names]
    return result


def write_qrels_parquet(judged: pd.DataFrame, path: Path) -> None:
    """Write judged queries as `read_qrels` returns them."""
    pq.write_table(pa.Table.from_pandas(judged, schema=QRELS, preserve_index=False), path)


def _format_of(config: QrelsConfig) -> str:
    if config.format is not None:
        return config.format
    name = config.path.with_suffix("") if config.path.suffix == ".gz" else config.path
    return {".json": "judgments", ".txt": "trec", ".qrels": "trec", ".trec": "trec"}.get(
        name.suffix, "columns"
    )


def _grades(grades: "pd.Series[Any]", config: QrelsConfig) -> "pd.Series[float]":
    numbers = pd.to_numeric(grades, errors="coerce").astype(float)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(np.argmax(bad))
        raise SchemaError(
            f"{config.path.name}: judgement {row + 1} has the grade {grades.iloc[row]!r}, no number"
        )
    if config.gains is None:
        return numbers
    unknown = sorted(set(numbers) - set(config.gains))
    if unknown:
        raise ConfigError(
            f"qrels.gains has no gain for the grade {unknown[0]:g} of {config.path.name}; add it"
        )
    return numbers.map(config.gains)


def _read_columns(config: QrelsConfig) -> pd.DataFrame:
    connection = connect(EngineConfig(threads=1))
    try:
        define_macros(connection)
        files = describe([config.path])
        delimiter = "\t" if ".tsv" in config.path.suffixes else ","
        relation = Relation(connection, "judged", files, delimiter=delimiter, separator="|")
        columns = config.columns
        relation.load(
            {
                "query_id": Wanted(
                    (columns.query_id or "query_id",), "id", required=columns.query_id is not None
                ),
                "query_text": Wanted((columns.query_text,)),
                "doc_id": Wanted((columns.doc_id,), "id"),
                "relevance": Wanted((columns.relevance,)),
            }
        )
        refused = connection.raw_sql("SELECT row, detail FROM judged_refused ORDER BY row LIMIT 1").fetchone()
        if refused:
            raise SchemaError(
                f"{config.path.name}: row {refused[0]} cannot be read ({refused[1]}); correct it"
            )
        query = (
            "SELECT coalesce(query_id, query_text) AS query_id, * EXCLUDE (query_id) FROM judged ORDER BY row"
        )
        judged: pd.DataFrame = connection.con.sql(query).df()
    finally:
        connection.disconnect()
    return judged


def _read_judgments(config: QrelsConfig) -> pd.DataFrame:
    """Read a judgement list of OpenSearch's search relevance workbench."""
    try:
        document = json.loads(_text(config.path))
        rows = [
            (_as_text(entry["query"]), _as_text(rating["docId"]), rating["rating"])
            for entry in document["judgmentRatings"]
            for rating in entry["ratings"]
        ]
    except json.JSONDecodeError as error:
        raise SchemaError(f"{config.path.name} is no JSON document: {error}") from None
    except (KeyError, TypeError) as error:
        raise SchemaError(
            f"{config.path.name} is no judgement list: expected judgmentRatings of query and ratings of "
            f"docId and rating ({error!r})"
        ) from None
    judged = pd.DataFrame(rows, columns=["query_text", "doc_id", "relevance"], dtype=object)
    judged["query_id"] = judged["query_text"]
    return judged


def _as_text(value: object) -> object:
    """Return an id or a query that JSON has as a number as text; null stays null.

    Raises:
        TypeError: If it is neither text nor number.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise TypeError(f"{value!r} is neither text nor a whole number")
    return value if value is None else str(value)


def _read_trec(config: QrelsConfig) -> pd.DataFrame:
    queries = config.texts()
    if queries is None:
        raise ConfigError(
            "qrels.queries is missing: trec judgements have ids of queries; set it to the file of their texts"
        )
    judged = _fields(config.path, _trec_fields, 4, "query 0 document grade").drop(columns=1)
    judged.columns = pd.Index(["query_id", "doc_id", "relevance"])
    texts = _fields(queries, lambda line: line.split("\t", 1), 2, "id, tab, text").set_index(0)[1]
    if not texts.index.is_unique:
        repeated = texts.index[texts.index.duplicated()][0]
        raise SchemaError(f"{queries.name} has two texts for the query {repeated!r}")
    judged["query_text"] = judged["query_id"].map(texts)
    missing = judged.loc[judged["query_text"].isna(), "query_id"]
    if len(missing):
        raise SchemaError(f"{queries.name} has no text for the query {missing.iloc[0]!r}")
    return judged


def _trec_fields(line: str) -> list[str]:
    """Split `query 0 document grade`, where the document's id may hold blanks."""
    head = line.split(None, 2)
    return [*head[:2], *(head[2].rsplit(None, 1) if len(head) == 3 else [])]


def _fields(path: Path, split: Callable[[str], list[str]], width: int, expected: str) -> pd.DataFrame:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    rows = [split(line) for line in lines]
    wrong = next((row for row in rows if len(row) != width), None)
    if wrong is not None:
        raise SchemaError(f"{path.name}: {wrong!r} is not `{expected}`")
    return pd.DataFrame(_stripped(rows), columns=range(width), dtype=str)


def _stripped(rows: Iterable[list[str]]) -> list[list[str]]:
    return [[field.strip() for field in row] for row in rows]


def _text(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path.name} is not UTF-8: {error}") from None
