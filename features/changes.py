"""Documents to add to a catalogue or to replace in it, prepared as `features.examples` prepares a catalogue.

A file of changes is a catalogue file whose columns have the names of `documents.parquet`: `doc_id`, what it
has of `title`, `text`, `image`, `updated_at`, and every feature. A document in it replaces the whole document
of the same id; what is known of that id from the log (impressions, clicks) stays. A new id has the values of
a document that was never shown.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.example_files import STATISTICS
from features.examples import content_key
from features.lake_files import repair_texts
from features.readers.catalogue import CatalogueConfig, FeatureType, read_catalogue
from features.readers.relations import MissingColumnError
from features.readers.values import define_macros
from features.tables import DOCUMENTS


def read_changes(path: Path, catalogue: pa.Table) -> pa.Table:
    """Read a file of changes and return rows as the catalogue has them, in order of doc_id.

    Unlike ingestion nothing is put aside: one row that cannot be taken refuses the file.

    Args:
        path: CSV, JSON lines or Parquet, each also .gz.
        catalogue: A `documents.parquet`.

    Raises:
        SchemaError: If the file cannot be read, lacks a column, has no rows, has a row that cannot be taken,
            or names a doc_id twice.
    """
    features = [name for name in catalogue.column_names if name not in {*DOCUMENTS.names, *STATISTICS.names}]
    config = CatalogueConfig.model_validate(
        {
            "path": path,
            "features": features,
            "feature_types": {name: _type_of(catalogue.schema.field(name).type) for name in features},
        }
    )
    connection = connect(EngineConfig())
    try:
        define_macros(connection)
        try:
            found, _ = read_catalogue(connection, config, "changes")
        except MissingColumnError as error:
            raise SchemaError(_lacking(path, features, error.columns)) from None
        names = [*DOCUMENTS.names, *features]
        rows = found.select("row", "reason", "detail", *names).order_by("doc_id", "row").to_pyarrow()
        refused = connection.raw_sql("SELECT row, reason, detail FROM changes_refused LIMIT 1").fetchall()
    finally:
        connection.disconnect()
    _check(path, rows, refused)
    batch = rows.select(names).combine_chunks().to_batches()[0]
    texts = [field.name for field in batch.schema if field.name in ("title", "text", *features)]
    texts = [name for name in texts if not pa.types.is_floating(batch.schema.field(name).type)]
    return with_statistics(pa.Table.from_batches([repair_texts(batch, texts)[0]]), catalogue)


def _lacking(path: Path, features: list[str], has: list[str]) -> str:
    """Say which columns a file of changes needs, may have, and has."""
    needed = ["doc_id", *features]
    told = f"{path.name} has the columns {', '.join(has)}"
    optional = [name for name in DOCUMENTS.names if name not in needed]
    if missing := [name for name in needed if name not in has]:
        return (
            f"{told}, not {', '.join(missing)}; name them as this bundle does: it needs {', '.join(needed)}, "
            f"and may have {', '.join(optional)}"
        )
    return f"{told}: nothing that describes a document; add {', '.join(optional[:-1])} or {optional[-1]}"


def with_statistics(changed: pa.Table, catalogue: pa.Table) -> pa.Table:
    """Add what examples know beyond a catalogue's own columns, and give all columns the catalogue's types.

    Args:
        changed: Unique doc_ids; DOCUMENTS and features.
        catalogue: A `documents.parquet`.
    """
    places = pc.index_in(changed["doc_id"], value_set=catalogue["doc_id"].combine_chunks())
    known = places.to_pylist()
    cold: dict[str, Any] = {
        "impressions": 0,
        "clicks": 0,
        "ctr": _mean_ctr(catalogue),
        "sampling_probability": 0.0,
        "cold": True,
    }
    for name, value in cold.items():
        column = catalogue[name].to_pylist() if any(place is not None for place in known) else []
        values = [value if place is None else column[place] for place in known]
        changed = changed.append_column(name, pa.array(values, catalogue.schema.field(name).type))
    contents = changed.select(["doc_id", "title", "text", "image"]).to_pylist()
    keys = pa.array([content_key(**row) for row in contents], pa.string())
    changed = changed.append_column("content_key", keys)
    fields = [changed.schema.field(f.name) if pa.types.is_null(f.type) else f for f in catalogue.schema]
    return changed.select(catalogue.column_names).cast(pa.schema(fields))


def _mean_ctr(catalogue: pa.Table) -> float:
    """Return the click-through rate of a document never shown: the mean that examples smooth with."""
    unseen = catalogue["ctr"].filter(pc.equal(catalogue["impressions"], 0))
    if len(unseen):
        return float(unseen[0].as_py())
    shown = pc.sum(catalogue["impressions"]).as_py() or 0
    return float((pc.sum(catalogue["clicks"]).as_py() or 0) / shown) if shown else 0.0


def _type_of(kind: pa.DataType) -> FeatureType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list"
    return "double" if pa.types.is_floating(kind) or pa.types.is_integer(kind) else "string"


def _check(path: Path, rows: pa.Table, refused: list[tuple[Any, ...]]) -> None:
    bad = rows.filter(pc.is_valid(rows["reason"])).select(["row", "reason", "detail"]).slice(0, 1).to_pylist()
    first = [tuple(row.values()) for row in bad] or refused
    if first:
        row, reason, detail = first[0]
        raise SchemaError(
            f"{path.name}, row {row}: {reason}{f' ({detail})' if detail else ''}; nothing was changed"
        )
    if not len(rows):
        raise SchemaError(f"{path.name} has no document; give at least one, or leave the file out")
    ids = rows["doc_id"]
    repeated = [one["values"] for one in pc.value_counts(ids).to_pylist() if one["counts"] > 1]
    if repeated:
        others = len(repeated) - 1
        also = "" if not others else " and 1 other id" if others == 1 else f" and {others:,} other ids"
        raise SchemaError(f"{path.name} has {repeated[0][:60]!r}{also} twice; keep one of each")
