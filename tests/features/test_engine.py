import sys
from datetime import datetime

import ibis
import pyarrow as pa
import pytest
from pydantic import ValidationError

from features.engine import EngineConfig, batches, connect
from features.errors import ConfigError


def test_the_default_engine_is_duckdb_in_memory_in_utc() -> None:
    connection = connect(EngineConfig(threads=1))
    assert connection.name == "duckdb"
    noon = ibis.literal("2024-06-01 12:00:00").cast("timestamp('UTC')").cast("timestamp(6)")
    assert connection.to_pyarrow(noon).as_py() == datetime(2024, 6, 1, 12)


def test_threads_and_memory_are_those_of_the_configuration() -> None:
    connection = connect(EngineConfig(threads=1, memory_limit="512MB"))
    threads, memory = connection.raw_sql(
        "SELECT current_setting('threads'), current_setting('memory_limit')"
    ).fetchone()
    assert threads == 1
    assert memory.startswith("488")  # MiB


def test_batches_keep_the_order_and_lose_no_row() -> None:
    connection = connect(EngineConfig(threads=1))
    connection.raw_sql("CREATE TEMP TABLE numbers AS SELECT n FROM range(300000) AS r(n)")
    table = connection.table("numbers")
    arrived = list(batches(connection, table.order_by(table.n.desc()), rows=100_000))
    assert len(arrived) > 1
    assert pa.Table.from_batches(arrived)["n"].to_pylist() == list(range(299_999, -1, -1))


def test_spark_without_pyspark_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(ConfigError, match="extra `spark`"):
        connect(EngineConfig(kind="spark"))


def test_a_database_that_cannot_be_opened_is_a_one_line_error(tmp_path: object) -> None:
    with pytest.raises(ConfigError) as error:
        connect(EngineConfig(database=f"{tmp_path}/absent/folder.db"))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_memory_limit_that_is_no_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="memory_limit"):
        EngineConfig(memory_limit="lots")
