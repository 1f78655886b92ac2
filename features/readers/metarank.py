"""Metarank's events: `item`, `ranking` and `interaction`, one JSON object a line.

A ranking is a list shown; an interaction names its ranking and is a click if its type is configured to be.
An item's fields become features by the type of their values. There is no query text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from ibis.backends import BaseBackend
from pydantic import Field

from features.errors import SchemaError
from features.readers.catalogue import (
    Features,
    FeatureType,
    Names,
    check_feature_names,
    feature_types,
    type_documents,
)
from features.readers.files import Paths, describe, find_files
from features.readers.raw import RawTables, refused_of, type_impressions
from features.readers.relations import create_refused, load_json_lines
from features.readers.source import Source
from features.readers.values import Zone, identifier, literal
from features.tables import Refusal

_EVENT: Final = literal(
    '{"event": "VARCHAR", "id": "JSON", "item": "JSON", "items": [{"id": "JSON"}], "ranking": "JSON", '
    '"user": "JSON", "timestamp": "JSON", "type": "VARCHAR", '
    '"fields": [{"name": "VARCHAR", "value": "JSON"}]}'
)


class MetarankSource(Source):
    """A log of Metarank events, which holds its own catalogue."""

    format: Literal["metarank"] = Field(description="Metarank events, as in RankLens.")
    path: Paths = Field(description="JSON lines, also .gz; a file, a glob, or a list.")
    interactions: Names = Field(
        default_factory=lambda: ["click"], min_length=1, description="Types of interaction that are clicks."
    )
    title: str | None = Field("title", description="Field of an item that is its title.")
    text: Names = Field(
        default_factory=lambda: ["description"], description="Fields of an item that make its text."
    )
    image: str | None = Field(None, description="Field of an item with the path or address of its image.")
    features: Features | None = Field(
        None, description="Fields that are features: a list, or feature: field; null takes all the others."
    )
    feature_types: dict[str, FeatureType] = Field(
        default_factory=dict, description="Types of features that must not be found by looking at the values."
    )
    timezone: Zone = Field("UTC", description="Time zone of timestamps that state none.")

    def files(self) -> list[Path]:
        """Return every file that is read."""
        return find_files(self.path)


def read_metarank(connection: BaseBackend, source: MetarankSource) -> RawTables:
    """Read a log of Metarank events.

    Raises:
        SchemaError: If a file is missing, or holds no item or no ranking.
    """
    create_refused(connection, "log")
    files = describe(find_files(source.path), "jsonl")
    load_json_lines(connection, "log", files)
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP TABLE log_events AS
        SELECT part, source, row, e.* FROM
          (SELECT part, source, row, from_json(line, {_EVENT}) AS e FROM log_lines)
    """)
    _check_events(connection, files[0].name)
    features = _load_items(connection, source)
    _load_lists(connection, source)
    types = feature_types(connection, "catalogue", features, source.feature_types)
    return RawTables(
        impressions=type_impressions(connection, "log_texts", (), source.timezone),
        documents=type_documents(connection, "catalogue", types, source.timezone, "|"),
        refused=refused_of(connection, {"log": "impressions"}),
        clicks=connection.table("log_clicks"),
        features=tuple(features),
        ignored=_ignored(connection, source),
    )


def _check_events(connection: BaseBackend, file: str) -> None:
    found = connection.raw_sql(
        "SELECT event, count(*) FROM log_events GROUP BY event ORDER BY event"
    ).fetchall()
    kinds = {kind for kind, _ in found}
    for needed in ("item", "ranking"):
        if needed not in kinds:
            has = ", ".join(f"{count} {kind}" for kind, count in found) or "nothing"
            raise SchemaError(f"{file} has no event {needed!r}, which Metarank logs have; it has: {has}")


def _load_items(connection: BaseBackend, source: MetarankSource) -> list[str]:
    """Create `catalogue`, the items with a column for each field, and return the names of the features."""
    connection.raw_sql("""
        CREATE OR REPLACE TEMP TABLE log_fields AS
        SELECT part, row, f.name AS name, f.value AS value FROM
          (SELECT part, row, unnest(fields) AS f FROM log_events WHERE event = 'item')
    """)
    found = connection.raw_sql("SELECT DISTINCT name FROM log_fields WHERE name IS NOT NULL ORDER BY name")
    names = [row[0] for row in found.fetchall()]
    used = {source.title, source.image, *source.text}
    features = source.features if source.features is not None else {n: n for n in names if n not in used}
    check_feature_names(features)
    for field in features.values():
        if field not in names:
            raise SchemaError(f"no item has the field {field!r}; features can be of: {', '.join(names)}")
    columns = [
        f"{_text([source.title] if source.title else [])} AS title",
        f"{_text(source.text)} AS text",
        f"{_text([source.image] if source.image else [])} AS image",
        *(
            f"any_value(tt_feature(tt_json_kind(value), tt_text(tt_json_text(value)))) "
            f"FILTER (name = {literal(field)}) AS {identifier(feature)}"
            for feature, field in features.items()
        ),
    ]
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP TABLE catalogue AS
        SELECT e.part, e.source, e.row, tt_json_id(e.item) AS doc_id,
          tt_text(tt_json_text(e.timestamp)) AS updated_at, f.* EXCLUDE (part, row)
        FROM (SELECT * FROM log_events WHERE event = 'item') e LEFT JOIN
          (SELECT part, row, {", ".join(columns)} FROM log_fields GROUP BY part, row) f USING (part, row)
    """)
    return list(features)


def _text(fields: Sequence[str]) -> str:
    values = [f"any_value(tt_text(tt_json_text(value))) FILTER (name = {literal(field)})" for field in fields]
    return f"nullif(concat_ws(chr(10), {', '.join(values)}), '')" if values else "NULL::VARCHAR"


def _load_lists(connection: BaseBackend, source: MetarankSource) -> None:
    """Create `log_texts`, a row for each document of each ranking, and `log_clicks`."""
    connection.raw_sql(f"""
        INSERT INTO log_refused SELECT source, row, '{Refusal.INVALID_VALUE}', 'a ranking without items', NULL
        FROM log_events WHERE event = 'ranking' AND coalesce(len(items), 0) = 0
    """)
    connection.raw_sql("""
        CREATE OR REPLACE TEMP VIEW log_texts AS
        SELECT part, source, row, tt_json_id(id) AS impression_id, NULL::VARCHAR AS query_id,
          NULL::VARCHAR AS query_text, tt_json_id("user") AS user_id,
          tt_text(tt_json_text(timestamp)) AS timestamp,
          tt_json_id(unnest(items).id) AS doc_id, generate_subscripts(items, 1)::VARCHAR AS position,
          NULL::VARCHAR AS clicked, NULL::VARCHAR AS dwell_ms
        FROM log_events WHERE event = 'ranking' AND len(items) > 0
    """)
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP VIEW log_clicks AS
        SELECT part, source, row, tt_json_id(ranking) AS impression_id, tt_json_id(item) AS doc_id,
          NULL::BIGINT AS dwell_ms FROM log_events WHERE event = 'interaction' AND {_clicks(source)}
    """)


def _clicks(source: MetarankSource) -> str:
    return f"type IN ({', '.join(literal(kind) for kind in source.interactions)})"


def _ignored(connection: BaseBackend, source: MetarankSource) -> dict[str, int]:
    counted = connection.raw_sql(f"""
        SELECT coalesce(event, 'no event') || CASE WHEN event = 'interaction' THEN ': ' || coalesce(type, '')
            ELSE '' END AS kind, count(*) FROM log_events
        WHERE coalesce(event, '') NOT IN ('item', 'ranking', 'interaction')
          OR (event = 'interaction' AND NOT coalesce({_clicks(source)}, false)) GROUP BY kind ORDER BY kind
    """)
    return dict(counted.fetchall())
