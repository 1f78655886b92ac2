"""The engine that ingestion and example building run on: Ibis on DuckDB, or on Spark, by configuration."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend
from pydantic import Field

from features import spark
from features.config import Config
from features.errors import ConfigError


class EngineConfig(Config):
    """Where the tables are computed. The same Ibis expressions run on either engine."""

    kind: Literal["duckdb", "spark"] = Field("duckdb", description="duckdb on one machine, spark past it.")
    threads: int | None = Field(None, ge=1, description="Threads of DuckDB; null uses every core.")
    memory_limit: str = Field(
        "2GB",
        pattern=r"^\d+(\.\d+)?\s*([KMGT]i?)?B$",
        description="What DuckDB may hold before it spills to disk.",
    )
    temp_directory: Path | None = Field(
        None, description="Where DuckDB spills to; null uses the system's temporary folder."
    )
    database: Path | None = Field(None, description="A DuckDB file to work in; null works in memory.")
    spark_options: dict[str, str] = Field(
        default_factory=dict, description="Options of the Spark session, such as spark.master."
    )


def connect(config: EngineConfig) -> BaseBackend:
    """Open the configured engine, with UTC as its time zone.

    Raises:
        ConfigError: If it is Spark and pyspark is not installed, or DuckDB refuses an option.
    """
    return spark.connect(config.spark_options) if config.kind == "spark" else _connect_duckdb(config)


def read_parquet(connection: BaseBackend, files: Sequence[Path]) -> ir.Table:
    """Open Parquet files as one table; lazily."""
    names = [str(file) for file in files]
    if connection.name == "duckdb":
        return connection.read_parquet(names)
    return spark.read_parquet(connection, names)


def materialise(connection: BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """Compute a table once, for all the tables that are selected from it, until the connection closes."""
    if connection.name == "duckdb":
        return connection.create_table(name, table, temp=True)
    return spark.materialise(connection, name, table)


def batches(connection: BaseBackend, table: ir.Table, rows: int = 131_072) -> Iterator[pa.RecordBatch]:
    """Compute a table and yield it in order, in Arrow batches of at most `rows` rows."""
    if connection.name == "duckdb":
        # Ibis 12 asks DuckDB for batches by a method that DuckDB 2 no longer has.
        connection._run_pre_execute_hooks(table)
        yield from connection.con.sql(ibis.to_sql(table, dialect="duckdb")).to_arrow_reader(rows)
    else:
        yield from spark.batches(connection, table, rows)


def _connect_duckdb(config: EngineConfig) -> BaseBackend:
    spill = config.temp_directory or Path(tempfile.gettempdir()) / f"twotower-duckdb-{os.getpid()}"
    options: dict[str, object] = {"memory_limit": config.memory_limit, "temp_directory": str(spill)}
    if config.threads is not None:
        options["threads"] = config.threads
    try:
        connection = ibis.duckdb.connect(config.database or ":memory:", **options)
    except (OSError, ValueError, ibis.IbisError) as error:
        raise ConfigError(f"engine: DuckDB does not start: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__ not in ("duckdb", "_duckdb"):
            raise
        raise ConfigError(f"engine: DuckDB does not start: {_first_line(error)}") from error
    connection.raw_sql("SET TimeZone = 'UTC'")
    connection.raw_sql("SET enable_progress_bar = false")
    return connection


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
