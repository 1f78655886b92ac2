"""The lake: every row of a log accepted, recognised as a duplicate, or in quarantine with a reason.

impressions/date=YYYY-MM-DD/part-0.parquet   what was shown, by UTC date
documents/part-0.parquet                     the catalogue
quarantine/part-0.parquet                    what was refused, and why
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
from ibis.backends import BaseBackend
from pydantic import AwareDatetime, Field

from features.artifact import Artifact, publish
from features.config import Config
from features.engine import EngineConfig, connect, materialise, read_parquet
from features.errors import SchemaError
from features.lake_checks import (
    ACCEPTED,
    DUPLICATE,
    check_documents,
    check_impressions,
    describe,
    quarantined,
    unmatched_clicks,
)
from features.lake_files import write_documents, write_impressions, write_quarantine
from features.readers import ColumnarSource, MetarankSource, RawTables, TablesSource, UbiSource, digests, read
from features.tables import DOCUMENTS, IMPRESSIONS, QUARANTINE, Refusal

Source = ColumnarSource | MetarankSource | TablesSource | UbiSource

_ADVICE: dict[str, str] = {
    Refusal.UNKNOWN_DOCUMENT: "its ids are not those of the catalogue: check what is mapped to doc_id",
    Refusal.UNREADABLE_TIMESTAMP: "write times as ISO 8601 or as an epoch: check what is mapped to it",
    Refusal.INVALID_VALUE: "a value is not of its type, such as a click that is not 1 or 0, true or false, "
    "yes or no: check what is mapped in the source",
    Refusal.FUTURE_TIMESTAMP: "check the timestamps, or set ingest.now or ingest.max_future",
}


class IngestConfig(Config):
    """What is accepted into the lake."""

    unknown_documents: Literal["quarantine", "keep"] = Field(
        "quarantine", description="What happens to a shown document that the catalogue does not have."
    )
    max_future: timedelta = Field(
        timedelta(days=1),
        ge=timedelta(0),
        description="How far ahead of now a timestamp may be (clocks differ).",
    )
    now: AwareDatetime | None = Field(
        None,
        description="What counts as now; null is the clock. Set it to ingest old files as they were.",
    )
    repair_text: bool = Field(True, description="Whether to repair UTF-8 that was read as Latin-1.")
    engine: EngineConfig = Field(
        EngineConfig(), description="Where the tables are computed; changes no result."
    )


def ingest(source: Source, target: Path, config: IngestConfig) -> Artifact:
    """Read a source, check every row, and publish the lake.

    Args:
        source: Where the log and the catalogue are, and in which format.
        target: The `lake` artifact to publish.
        config: What is accepted.

    Returns:
        The published artifact; equal files and configuration give an equal digest.

    Raises:
        SchemaError: If a file is missing, damaged or lacks a column, or the log or catalogue is empty.
        ConfigError: If the engine cannot read this format.
    """
    inputs = digests(source.files())
    connection = connect(config.engine)
    try:
        raw = read(source, connection)
        content: dict[str, Any] = {
            "source": source.described(),
            "config": config.model_dump(mode="json", exclude={"engine", "now"}),
            "inputs": inputs,
        }
        with publish(target, "lake", content) as staging:
            _write(connection, raw, staging, content, config)
    finally:
        connection.disconnect()
    return Artifact.read(target, "lake")


def read_impressions(lake: Path, connection: BaseBackend) -> ir.Table:
    """Open the impressions of a lake; lazily, and without the partition column."""
    files = sorted((lake / "impressions").glob("date=*/*.parquet"))
    table = read_parquet(connection, files)
    return table.drop("date") if "date" in table.columns else table


def read_documents(lake: Path, connection: BaseBackend) -> ir.Table:
    """Open the documents of a lake; lazily."""
    return read_parquet(connection, sorted((lake / "documents").glob("*.parquet")))


def _write(
    connection: BaseBackend, raw: RawTables, staging: Path, content: dict[str, Any], config: IngestConfig
) -> None:
    """Check every row, write it where it belongs, and account for it in `content`."""
    refused = materialise(connection, "lake_refused", raw.refused)
    documents = materialise(connection, "lake_documents", check_documents(raw))
    accepted = documents.filter(documents.outcome == ACCEPTED)
    counts = content["documents"] = _counts(documents, raw.documents, refused, "documents")

    known = accepted if config.unknown_documents == "quarantine" else None
    checked = check_impressions(raw, known, _latest(config))
    impressions = materialise(connection, "lake_impressions", checked)
    content["impressions"] = _counts(impressions, raw.impressions, refused, "impressions")
    refusals = [
        refused.select(*QUARANTINE.names),
        quarantined(documents, "documents", [*DOCUMENTS.names, *raw.features]),
        quarantined(impressions, "impressions", [*IMPRESSIONS.names, *raw.context]),
    ]
    if raw.clicks is not None:
        orphans = materialise(connection, "lake_orphans", unmatched_clicks(raw.clicks, impressions))
        content["impressions"]["input"] += _rows(orphans)
        content["impressions"]["click_events"] = _rows(raw.clicks)
        refusals.append(quarantined(orphans, "impressions", ["impression_id", "doc_id"]))
    if raw.ignored:
        content["ignored"] = dict(raw.ignored)

    written = write_quarantine(connection, ibis.union(*refusals), staging / "quarantine")
    for table in ("documents", "impressions"):  # without a catalogue, nothing that was shown is known
        content[table]["quarantined"] = written[table]
        check_account(content[table], table)
    content["impressions"] |= describe(impressions)
    counts["repaired_text"] = write_documents(
        connection, accepted, raw.features, staging / "documents", repair=config.repair_text
    )
    content["impressions"]["repaired_text"] = write_impressions(
        connection,
        impressions.filter(impressions.outcome == ACCEPTED),
        raw.context,
        staging / "impressions",
        repair=config.repair_text,
    )


def _latest(config: IngestConfig) -> datetime:
    """Return the latest timestamp that is not in the future; UTC without a zone."""
    now = config.now or datetime.now(UTC)
    return (now + config.max_future).astimezone(UTC).replace(tzinfo=None)


def _counts(checked: ir.Table, read: ir.Table, refused: ir.Table, table: str) -> dict[str, Any]:
    """Count what came in, from what was read, and what was made of it, from what was checked."""
    made = checked.aggregate(
        accepted=(checked.outcome == ACCEPTED).sum(), duplicates=(checked.outcome == DUPLICATE).sum()
    ).to_pyarrow()
    counts = {name: int(made[name][0].as_py() or 0) for name in ("accepted", "duplicates")}
    return {"input": _rows(read) + _rows(refused.filter(refused.table == table)), **counts}


def _rows(table: ir.Table) -> int:
    return int(table.count().to_pyarrow().as_py())


def check_account(counts: dict[str, Any], table: str) -> None:
    """Prove that no row was lost and none was made up, and that something is left.

    Raises:
        SchemaError: If nothing came in, or nothing of it was accepted.
    """
    quarantined_rows = sum(counts["quarantined"].values())
    if counts["accepted"] + counts["duplicates"] + quarantined_rows != counts["input"]:
        raise RuntimeError(f"defect: rows of {table} were lost or made up: {counts}")
    what = {"impressions": "the log", "documents": "the catalogue"}[table]
    if counts["input"] == 0:
        raise SchemaError(f"{what} is empty: no {table}; check `path` and what is mapped in the source")
    if counts["accepted"] == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["quarantined"].items())
        first = max(counts["quarantined"], key=lambda reason: counts["quarantined"][reason])
        advice = _ADVICE.get(first, "check what is mapped in the source")
        raise SchemaError(f"{what}: none of {counts['input']} rows was accepted ({reasons}); {advice}")
