"""OpenSearch User Behavior Insights: `ubi_queries` and `ubi_events`, as bulk ndjson or one object a line.

An event whose action is an impression is a document shown, one whose action is a click is a click on it; the
query's id ties them together. A query's text comes with the event, or from the record of the query, or
from the event of the search.
"""

from pathlib import Path
from typing import Final, Literal

from ibis.backends import BaseBackend
from pydantic import Field

from features.readers.catalogue import CatalogueConfig, Names, read_catalogue
from features.readers.files import Paths, describe, find_files
from features.readers.raw import RawTables, refused_of, type_impressions
from features.readers.relations import create_refused, load_json_lines
from features.readers.source import Source
from features.readers.values import Zone, literal

_RECORD: Final = literal(
    '{"index": "JSON", "create": "JSON", "action_name": "VARCHAR", "query_id": "JSON", "client_id": "JSON", '
    '"user_id": "JSON", "session_id": "JSON", "user_query": "JSON", "message": "JSON", "timestamp": "JSON", '
    '"event_attributes": {"object": {"object_id": "JSON"}, "position": {"ordinal": "JSON"}}}'
)


class UbiSource(Source):
    """A log of User Behavior Insights beside a catalogue."""

    format: Literal["ubi"] = Field(description="OpenSearch User Behavior Insights.")
    path: Paths = Field(
        description="Events and queries: bulk ndjson or JSON lines, also .gz; files may mix both."
    )
    documents: CatalogueConfig = Field(description="The catalogue; UBI does not hold it.")
    impression_actions: list[str] = Field(
        default_factory=lambda: ["impression", "view"],
        description="Actions that show a document; an empty list makes every click a row of its own.",
    )
    click_actions: Names = Field(
        default_factory=lambda: ["click"],
        min_length=1,
        description="Actions that are clicks on what is shown.",
    )
    query_actions: list[str] = Field(
        default_factory=lambda: ["search", "on_search"],
        description="Actions whose message is the text of the query.",
    )
    user: Literal["client_id", "user_id", "session_id"] = Field(
        "client_id", description="Field that says who it was."
    )
    first_position: Literal["auto", 0, 1] = Field(
        "auto", description="What the log calls the first position; auto: 0 in the lists that have a 0."
    )
    timezone: Zone = Field("UTC", description="Time zone of timestamps that state none.")

    def files(self) -> list[Path]:
        """Return every file that is read, log first."""
        return [*find_files(self.path), *find_files(self.documents.path)]


def read_ubi(connection: BaseBackend, source: UbiSource) -> RawTables:
    """Read a UBI log.

    Raises:
        SchemaError: If a file is missing.
    """
    documents, features = read_catalogue(connection, source.documents, "catalogue")
    create_refused(connection, "log")
    load_json_lines(connection, "log", describe(find_files(source.path), "jsonl"))
    _load_records(connection, source)
    shown = source.impression_actions or source.click_actions
    _load_impressions(connection, source, shown)
    clicks = None
    if source.impression_actions:
        connection.raw_sql(f"""
            CREATE OR REPLACE TEMP VIEW log_clicks AS
            SELECT part, source, row, impression_id, doc_id, NULL::BIGINT AS dwell_ms FROM log_records
            WHERE {_action_in(source.click_actions)}
        """)
        clicks = connection.table("log_clicks")
    first = 1 if source.first_position == "auto" else source.first_position
    return RawTables(
        impressions=type_impressions(connection, "log_texts", (), source.timezone, first),
        documents=documents,
        refused=refused_of(connection, {"log": "impressions", "catalogue": "documents"}),
        clicks=clicks,
        features=features,
        ignored=_ignored(connection, {*shown, *source.click_actions}),
    )


def _load_records(connection: BaseBackend, source: UbiSource) -> None:
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP TABLE log_records AS
        SELECT part, source, row, e.action_name AS action,
          e."index" IS NOT NULL OR e."create" IS NOT NULL AS bulk,
          tt_json_id(e.query_id) AS impression_id, tt_json_id(e.event_attributes.object.object_id) AS doc_id,
          tt_json_id(e.{source.user}) AS user_id, tt_text(tt_json_text(e.user_query)) AS user_query,
          tt_text(tt_json_text(e.message)) AS message, tt_text(tt_json_text(e.timestamp)) AS timestamp,
          tt_text(tt_json_text(e.event_attributes.position.ordinal)) AS position
        FROM (SELECT part, source, row, from_json(line, {_RECORD}) AS e FROM log_lines)
    """)


def _load_impressions(connection: BaseBackend, source: UbiSource, shown: list[str]) -> None:
    """Create `log_texts`; the first text of a query in reading order is its text."""
    shift = "CASE WHEN min(tt_number(position)) OVER (PARTITION BY impression_id) = 0 THEN 1 ELSE 0 END"
    position = f"coalesce((tt_number(position) + {shift})::VARCHAR, position)"
    clicked = "NULL::VARCHAR" if source.impression_actions else "'true'"
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP TABLE log_texts AS
        SELECT part, source, row, impression_id, NULL::VARCHAR AS query_id,
          coalesce(user_query, q.query_text) AS query_text, user_id, timestamp, doc_id,
          {position if source.first_position == "auto" else "position"} AS position, {clicked} AS clicked,
          NULL::VARCHAR AS dwell_ms
        FROM (SELECT * FROM log_records WHERE {_action_in(shown)}) LEFT JOIN (
          SELECT impression_id, coalesce(
              arg_min(user_query, (action IS NOT NULL, part, row)) FILTER (user_query IS NOT NULL),
              arg_min(message, (part, row)) FILTER (message IS NOT NULL
                AND {_action_in(source.query_actions)})
            ) AS query_text
          FROM log_records WHERE impression_id IS NOT NULL GROUP BY impression_id) q USING (impression_id)
    """)


def _action_in(actions: list[str]) -> str:
    return (
        f"coalesce(action IN ({', '.join(literal(action) for action in actions)}), false)"
        if actions
        else "false"
    )


def _ignored(connection: BaseBackend, used: set[str]) -> dict[str, int]:
    """Count the lines that are neither impression nor click."""
    counted = connection.raw_sql(f"""
        SELECT CASE WHEN bulk THEN 'bulk action' WHEN action IS NULL THEN 'query' ELSE 'event: ' || action END
            AS kind, count(*) FROM log_records
        WHERE bulk OR NOT {_action_in(sorted(used))} GROUP BY kind ORDER BY kind
    """)
    return dict(counted.fetchall())
