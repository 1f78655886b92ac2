"""The two tables everything is made of: impressions and documents.

`impressions` has one row for each document shown for a query; `documents` has one row for each thing
that can be retrieved. Readers of outside formats produce these two tables and nothing else.
"""

from enum import StrEnum

import pyarrow as pa

IMPRESSIONS = pa.schema(
    [
        pa.field("impression_id", pa.string(), nullable=False),  # one list shown to somebody
        pa.field(
            "query_id", pa.string(), nullable=False
        ),  # as the log calls it; impression_id if it has none
        pa.field("query_text", pa.string()),  # null where the log has no text: then the history is the query
        pa.field("user_id", pa.string()),
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("position", pa.int32()),  # 1-based; null where the log has clicks only
        pa.field("clicked", pa.bool_(), nullable=False),
        pa.field("dwell_ms", pa.int64()),
    ]
)
"""Columns that every impressions table has; context columns may follow."""

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),  # empty where the catalogue has none
        pa.field("text", pa.string(), nullable=False),
        pa.field("image", pa.string()),
        pa.field("updated_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Columns that every documents table has; feature columns (string, double, list<string>) follow."""

QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),  # impressions or documents
        pa.field("source", pa.string(), nullable=False),  # file name
        pa.field("row", pa.int64()),  # 1-based row or line of the source, where it has one
        pa.field("reason", pa.string(), nullable=False),  # a `Refusal`
        pa.field("detail", pa.string()),
        pa.field("raw", pa.string()),  # the row as it came, as JSON or text
    ]
)


class Refusal(StrEnum):
    """Why a row is in quarantine instead of in its table."""

    INVALID_JSON = "invalid_json"
    MISSING_ID = "missing_id"
    MISSING_TIMESTAMP = "missing_timestamp"
    UNREADABLE_TIMESTAMP = "unreadable_timestamp"
    FUTURE_TIMESTAMP = "future_timestamp"
    UNKNOWN_DOCUMENT = "unknown_document"  # shown, but absent from the catalogue
    CLICK_NOT_SHOWN = "click_not_shown"  # a click on a document that its list did not show
    INVALID_POSITION = "invalid_position"
    INVALID_VALUE = "invalid_value"  # any other field that cannot be read as its type
    EMPTY_DOCUMENT = "empty_document"  # neither title nor text nor any feature
