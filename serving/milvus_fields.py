"""What a collection of Milvus holds: each vector with its document's fields; and selections in its language.

Shapes: N documents, D embedding.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from serving import milvus_collection
from serving.filters import Selection
from serving.vectors import Vectors

LISTED_ROWS = 5_000
"""So many allowed or forbidden rows are told one by one; more are told by the filters."""

_TEXTS = ("title", "text")  # stay in the catalogue; what filters them is told by rows
_BATCH_BYTES = 8_000_000
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def create_collection(client: Any, stored: milvus_collection.Collection, build: Mapping[str, int]) -> None:
    """Create a collection without rows, and its index with the parameters `build`."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=65_535)
    schema.add_field("fields", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=stored.dimension)
    index = client.prepare_index_params()
    index.add_index("vector", index_type=stored.index_type, metric_type="IP", params=dict(build))
    client.create_collection(stored.collection, schema=schema, index_params=index, consistency_level="Strong")


def fingerprint(
    document_ND: Vectors, documents: pd.DataFrame, index_type: str, build: Mapping[str, int]
) -> str:
    """Return a digest of everything that a collection holds, its index included."""
    digest = hashlib.sha256(np.ascontiguousarray(document_ND).tobytes())
    for batch in batches(document_ND, documents):
        texts = [[row["doc_id"], row["fields"]] for row in batch]
        digest.update(json.dumps(texts, ensure_ascii=False).encode())
    digest.update(f"{index_type} {sorted(build.items())}".encode())
    return digest.hexdigest()[:32]


def batches(document_ND: Vectors, documents: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Yield rows for Milvus in requests of bounded size; texts stay in the catalogue."""
    names = [name for name in documents.columns if name not in ("doc_id", *_TEXTS)]
    rows = max(1, _BATCH_BYTES // (document_ND.shape[1] * 8 + 1_000))
    for start in range(0, len(documents), rows):
        part = documents.iloc[start : start + rows]
        fields = part[names].to_dict("records")
        yield [
            {"row": start + place, "doc_id": doc_id, "fields": _stored(values), "vector": vector}
            for place, (doc_id, values, vector) in enumerate(
                zip(part["doc_id"], fields, document_ND[start : start + rows], strict=True)
            )
        ]


def _stored(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a document's fields as JSON, without those it does not have."""
    kept = {str(name): _json(value) for name, value in values.items()}
    return {name: value for name, value in kept.items() if value is not None}


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray | list | tuple):
        return [_json(entry) for entry in value if entry is not None]
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, datetime):
        return _microseconds(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def expression(selection: Selection, moments: Collection[str]) -> str:
    """Say a selection in Milvus's language: by rows where they are few, else by the filters themselves.

    Args:
        selection: Of catalogue rows.
        moments: The fields that hold timestamps.
    """
    size = len(selection.mask)
    if selection.count == size:
        return ""
    most = size if selection.filters.keys() & {*_TEXTS} else LISTED_ROWS
    if selection.count <= min(most, size // 2) or selection.count <= LISTED_ROWS:
        return f"row in {np.flatnonzero(selection.mask).tolist()}"
    if size - selection.count <= most:
        return f"row not in {np.flatnonzero(~selection.mask).tolist()}"
    parts = [_condition(name, wanted, name in moments) for name, wanted in selection.filters.items()]
    if selection.excluded:
        parts.append(f"doc_id not in {json.dumps(list(selection.excluded), ensure_ascii=False)}")
    return " and ".join(parts)


def _condition(name: str, wanted: Any, is_moment: bool) -> str:
    field = "doc_id" if name == "doc_id" else f"fields[{json.dumps(name, ensure_ascii=False)}]"
    if not isinstance(wanted, Mapping):
        return _any_of(field, [_literal(wanted, is_moment)])
    if "in" in wanted:
        return _any_of(field, [_literal(value, is_moment) for value in wanted["in"]])
    return " and ".join(
        f"{field} {_OPERATORS[key]} {_literal(value, is_moment)}" for key, value in wanted.items()
    )


def _any_of(field: str, literals: list[str]) -> str:
    """Match a value, or any element of a list; nothing matches no values."""
    if not literals:
        return "row < 0"
    listed = f"[{', '.join(literals)}]"
    if field == "doc_id":
        return f"doc_id in {listed}"
    equal = " or ".join(f"{field} == {literal}" for literal in literals)  # Milvus Lite has no `in` for JSON
    return f"({equal} or json_contains_any({field}, {listed}))"


def _literal(value: Any, is_moment: bool) -> str:
    if is_moment:
        return str(_microseconds(datetime.fromisoformat(value) if isinstance(value, str) else value))
    return json.dumps(value.item() if isinstance(value, np.generic) else value, ensure_ascii=False)


def _microseconds(moment: datetime) -> int:
    """Return a moment as microseconds since 1970, UTC where it names no zone."""
    since = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)
