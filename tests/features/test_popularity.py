import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.popularity import document_statistics

SHOWN = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=20)


def _table(**columns: list) -> ibis.Table:
    return ibis.memtable(pa.table(columns))


def _statistics(shown: list[tuple[str, bool]], rows: list[str], strength: float) -> dict[str, dict]:
    table = document_statistics(
        _table(doc_id=list("abcd")),
        _table(doc_id=[doc for doc, _ in shown], positive=[click for _, click in shown]),
        _table(positive_doc_id=rows),
        ctr_prior_strength=strength,
    )
    return {row["doc_id"]: row for row in table.to_pyarrow().to_pylist()}


@settings(max_examples=25, deadline=None)
@given(shown=SHOWN, strength=st.sampled_from([0.5, 20.0]))
def test_statistics_equal_the_formula_written_as_loops(shown: list[tuple[str, bool]], strength: float):
    rows = [doc for doc, click in shown if click] or ["a"]
    found = _statistics(shown, rows, strength)
    mean = sum(click for _, click in shown) / len(shown)
    for doc in "abcd":
        impressions = sum(other == doc for other, _ in shown)
        clicks = sum(other == doc and click for other, click in shown)
        assert found[doc]["impressions"] == impressions
        assert found[doc]["clicks"] == clicks
        assert found[doc]["cold"] == (clicks == 0)
        assert found[doc]["ctr"] == pytest.approx((clicks + strength * mean) / (impressions + strength))
        assert found[doc]["sampling_probability"] == pytest.approx(rows.count(doc) / len(rows))


def test_a_document_never_shown_has_the_mean_rate_and_is_never_sampled():
    found = _statistics([("a", True), ("b", False)], ["a"], 10.0)
    assert found["d"] == {
        "doc_id": "d",
        "impressions": 0,
        "clicks": 0,
        "ctr": 0.5,
        "sampling_probability": 0.0,
        "cold": True,
    }
