"""What Ibis leaves open on Spark: a session, many files as one table, results kept, results in order.

pyspark is imported where it is needed: it is an extra, and takes a Java machine with it.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend

from features.errors import ConfigError

_names = itertools.count()


def connect(options: Mapping[str, str]) -> BaseBackend:
    """Open a Spark session with UTC as its time zone.

    Raises:
        ConfigError: If pyspark is not installed, or the session does not start.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError(
            "engine.kind: spark needs pyspark; install the extra `spark` (and Java 17), or use duckdb"
        ) from None
    builder = SparkSession.builder.appName("twotower").config("spark.sql.session.timeZone", "UTC")
    for key, value in options.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ConfigError(f"engine: Spark does not start: {reason}; it needs Java 17 or 21") from error
    return ibis.pyspark.connect(session)


def read_parquet(connection: BaseBackend, files: Sequence[str]) -> ir.Table:
    """Open Parquet files as one table; lazily."""
    return _named(connection, f"twotower_files_{next(_names)}", _session(connection).read.parquet(*files))


def materialise(connection: BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """Keep a table's rows with the executors from when they are first computed."""
    return _named(connection, name, _computed(connection, table).persist())


def batches(connection: BaseBackend, table: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """Compute a table into files and yield them in the table's order, without holding it.

    The files go to the temporary folder, which a cluster's driver must share with its executors (`TMPDIR`).
    """
    with tempfile.TemporaryDirectory(prefix="twotower-spark-") as folder:
        target = Path(folder) / "rows"
        _computed(connection, table).write.parquet(str(target))
        for part in sorted(target.glob("part-*.parquet")):  # a part is a range of the order
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(rows)


def _computed(connection: BaseBackend, table: ir.Table) -> Any:
    """Return the table as a Spark frame; an empty list, to which Spark gives no type, gets its column's."""
    from ibis.backends.pyspark.datatypes import PySparkSchema

    connection._run_pre_execute_hooks(table)
    frame = _session(connection).sql(connection.compile(table))
    types = {field.name: field.dataType for field in PySparkSchema.from_ibis(table.schema())}
    return frame.select(
        *(
            frame[name].cast(types[name]).alias(name) if "void" in kind else frame[name]
            for name, kind in frame.dtypes
        )
    )


def _named(connection: BaseBackend, name: str, frame: Any) -> ir.Table:
    frame.createOrReplaceTempView(name)
    return connection.table(name)


def _session(connection: BaseBackend) -> Any:
    return connection._session
