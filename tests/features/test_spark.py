"""The same files from Spark as from DuckDB: real Spark, in one process on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.artifact import Artifact
from features.engine import EngineConfig
from features.errors import ConfigError
from features.examples import ExamplesConfig, build_examples
from features.lake import IngestConfig, ingest
from features.readers import ColumnarSource, TablesSource
from features.simulate import SimulateConfig, simulate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17"),
    pytest.mark.filterwarnings("default"),  # pyspark warns of pandas 3 in many ways
]
LOCAL = {
    "spark.master": "local[1]",
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
}
DUCKDB = EngineConfig(threads=1)
SPARK = EngineConfig(kind="spark", spark_options=LOCAL)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> ColumnarSource:
    folder = tmp_path_factory.mktemp("shop") / "shop"
    simulate(folder, SimulateConfig(sessions=400, documents=40, queries=20))
    documents = {"path": folder / "documents.jsonl.gz", "features": ["brand", "price", "attributes"]}
    return ColumnarSource.model_validate(
        {"format": "columnar", "path": folder / "impressions.parquet", "documents": documents}
    )


@pytest.fixture(scope="module")
def tables(shop: ColumnarSource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TablesSource]:
    """The shop as two tables, and a Spark session that ends with the module."""
    folder = tmp_path_factory.mktemp("spark")
    lake = ingest(shop, folder / "lake", IngestConfig(engine=DUCKDB)).path
    yield TablesSource(
        format="tables",
        impressions=lake / "impressions" / "*" / "*.parquet",
        documents=lake / "documents" / "*.parquet",
    )
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


@pytest.fixture(scope="module")
def lakes(tables: TablesSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    folder = tmp_path_factory.mktemp("lakes")
    by_duckdb = ingest(tables, folder / "duckdb", IngestConfig(engine=DUCKDB))
    return by_duckdb, ingest(tables, folder / "spark", IngestConfig(engine=SPARK))


def test_a_lake_from_spark_has_the_same_bytes(lakes: tuple[Artifact, Artifact]) -> None:
    by_duckdb, by_spark = lakes
    assert by_spark.manifest["files"] == by_duckdb.manifest["files"]
    assert by_spark.digest == by_duckdb.digest


@pytest.mark.parametrize(
    "settings",
    [
        {"query": "text", "weight": "inverse_propensity"},
        {"query": "history", "exclude_seen": True, "split": {"by": "last_impression"}},
    ],
    ids=["text", "history"],
)
def test_examples_from_spark_have_the_same_bytes(
    lakes: tuple[Artifact, Artifact], tmp_path: Path, settings: dict[str, object]
) -> None:
    config = ExamplesConfig.model_validate(settings)
    by_duckdb, by_spark = (
        build_examples(lake.path, tmp_path / engine.kind, config.model_copy(update={"engine": engine}))
        for lake, engine in zip(lakes, (DUCKDB, SPARK), strict=True)
    )
    assert by_spark.manifest["files"] == by_duckdb.manifest["files"]
    assert by_spark.digest == by_duckdb.digest


@pytest.mark.usefixtures("tables")
def test_spark_refuses_the_formats_that_only_duckdb_reads(shop: ColumnarSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads format: tables"):
        ingest(shop, tmp_path / "lake", IngestConfig(engine=SPARK))
