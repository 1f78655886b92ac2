from collections.abc import Sequence
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.examples import ExamplesConfig, build_examples
from features.lake import IngestConfig, ingest
from features.propensity import (
    PositionBias,
    estimate_position_bias,
    examination_of,
    weigh_by_propensity,
)
from features.readers import SourceConfig
from features.simulate import SimulateConfig, simulate

# Ibis 12 calls what DuckDB 2 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of strong position bias, in which looking at a place depends on the place alone."""
    config = SimulateConfig.model_validate(
        {"sessions": 40_000, "documents": 600, "queries": 300, "results": 8, "seed": 3}
        | {"clicks": {"patience": 0.7, "satisfaction": 0.0}}
    )
    return simulate(tmp_path_factory.mktemp("shop") / "shop", config).path


def bias_of(impressions: pa.Table) -> PositionBias:
    connection = connect(EngineConfig(threads=1))
    try:
        return estimate_position_bias(connection, ibis.memtable(impressions))
    finally:
        connection.disconnect()


def test_the_true_examination_of_the_simulated_shop_is_recovered(shop: Path) -> None:
    """Within 12%; the click-through rate, which mixes in that the shop ranks well, is off by 40%."""
    log = pq.read_table(shop / "impressions.parquet")
    found = bias_of(log.append_column("query_key", log["query_text"]))
    truth = pq.read_table(shop / "truth" / "positions.parquet")["examination"].to_numpy()
    assert found.position.tolist() == list(range(1, 9))
    assert found.examination == pytest.approx(truth / truth[0], rel=0.12)
    clicked, position = log["clicked"].to_numpy(), log["position"].to_numpy()
    naive = np.bincount(position, clicked)[1:] / np.bincount(position)[1:]
    assert np.abs(naive / naive[0] / (truth / truth[0]) - 1).max() > 0.4


def test_the_estimate_maximises_the_likelihood_given_each_pairs_clicks() -> None:
    """Against the likelihood written as loops: no step along any place's axis raises it."""
    random = np.random.default_rng(0)
    rows = [(place, pair) for pair in range(30) for place in range(4) if random.random() < 0.6]
    place, pair = np.array(rows).T
    shown = random.integers(1, 9, len(rows)).astype(float)
    clicks = random.binomial(shown.astype(int), 0.5 ** (1 + place)).astype(float)
    found = examination_of(place, pair, shown, clicks, 4)

    def likelihood(theta: np.ndarray) -> float:
        total = sum(5.0 * np.log(theta[p] / theta.sum()) for p in range(4))
        for row in range(len(rows)):
            of_pair = [other for other in range(len(rows)) if pair[other] == pair[row]]
            expected = sum(shown[other] * theta[place[other]] for other in of_pair)
            total += clicks[row] * np.log(shown[row] * theta[place[row]] / expected)
        return float(total)

    assert found.max() == 1
    for p in range(4):
        for factor in (0.99, 1.01):
            moved = found.copy()
            moved[p] *= factor
            assert likelihood(moved) < likelihood(found)


def table(rows: Sequence[tuple[str | None, str, int | None, bool]]) -> pa.Table:
    names = ("query_key", "doc_id", "position", "clicked")
    types = (pa.string(), pa.string(), pa.int32(), pa.bool_())
    columns = [
        pa.array(list(column), kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)
    ]
    return pa.table(dict(zip(names, columns, strict=True)))


def test_places_that_no_pair_connects_are_not_corrected() -> None:
    """Each document keeps its place: nothing says whether places or documents differ."""
    rows = [("q", "a", 1, True)] * 50 + [("q", "b", 2, i < 5) for i in range(50)]
    assert bias_of(table(rows)).examination == pytest.approx([1, 1])


def test_rows_without_a_place_or_a_query_say_nothing() -> None:
    swapped = [("q", "a", 1, True)] * 40 + [("q", "a", 2, i < 10) for i in range(40)]
    noise = [(None, "a", 1, False), ("q", "a", None, True)] * 100
    found = bias_of(table(swapped + noise))
    assert np.array_equal(found.examination, bias_of(table(swapped)).examination)
    assert found.examination[1] == pytest.approx(15 / 45, abs=0.05)


def test_a_log_without_positions_is_refused() -> None:
    with pytest.raises(SchemaError, match="no clicked document has a position"):
        bias_of(table([("q", "a", None, True), ("q", "b", 1, False)]))


def test_weights_are_inverse_clipped_and_average_one() -> None:
    bias = PositionBias(np.array([1, 2, 7]), np.array([1.0, 0.5, 0.01]), np.array([9, 9, 9]))
    clicks = pa.table({"position": pa.array([1, 1, 2, 7, None], pa.int32()), "weight": [1.0] * 5})
    connection = connect(EngineConfig(threads=1))
    rows = weigh_by_propensity(ibis.memtable(clicks), bias, 0.2)
    found = connection.to_pyarrow(rows.order_by("position")).to_pydict()
    assert found["position"] == [1, 1, 2, 7, None]
    assert found["weight"] == pytest.approx([1 / 2.25, 1 / 2.25, 2 / 2.25, 5 / 2.25, 1])
    assert np.mean(found["weight"][:4]) == pytest.approx(1)


def test_examples_weigh_clicks_by_the_train_lists_curve_and_say_so(shop: Path, tmp_path: Path) -> None:
    documents = {"path": str(shop / "documents.jsonl.gz")}
    source = {"format": "columnar", "path": str(shop / "impressions.parquet"), "documents": documents}
    ingest(TypeAdapter(SourceConfig).validate_python(source), tmp_path / "lake", IngestConfig())
    config = ExamplesConfig(query="text", weight="inverse_propensity", propensity_floor=0.25)
    built = build_examples(tmp_path / "lake", tmp_path / "examples", config)
    curve = built.content["position_bias"]
    assert [entry["position"] for entry in curve] == list(range(1, 9))
    assert curve[0]["examination"] == 1
    assert curve[3]["examination"] == pytest.approx(0.7**3, rel=0.15)
    rows = pq.read_table(tmp_path / "examples" / "train.parquet")
    weight = rows["weight"].to_numpy()
    assert weight.mean() == pytest.approx(1)
    assert weight.max() / weight.min() == pytest.approx(4)
    again = build_examples(tmp_path / "lake", tmp_path / "again", config)
    assert again.digest == built.digest
