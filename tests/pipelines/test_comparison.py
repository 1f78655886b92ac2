import pytest

from features.errors import ArtifactError
from pipelines.comparison import compare, find_evaluation, read_evaluation
from pipelines.workspace import Workspace
from serving.store import Store

RUN = "0123456789abcdef0123456789abcdef"


def test_on_the_same_data_the_difference_is_paired(tmp_path, make_evaluation):
    a = read_evaluation(make_evaluation(tmp_path / "a", {"towers": 0.50}))
    b = read_evaluation(make_evaluation(tmp_path / "b", {"towers": 0.51}))
    (row,) = compare(a, b)
    assert row["difference"] == pytest.approx(0.01)
    assert row["low"] == pytest.approx(0.01)  # the same noise is in both, so nothing of it is left
    assert row["p"] < 0.01
    assert row["n"] == 200


def test_on_other_data_the_interval_spans_both_and_there_is_no_p(tmp_path, make_evaluation):
    a = read_evaluation(make_evaluation(tmp_path / "a", {"towers": 0.50}))
    b = read_evaluation(make_evaluation(tmp_path / "b", {"towers": 0.51}, examples="other", seed=1))
    (row,) = compare(a, b)
    assert row["p"] is None
    first, second = a.value("nDCG@10"), b.value("nDCG@10")
    assert row["low"] == pytest.approx(second["low"] - first["high"])
    assert row["high"] == pytest.approx(second["high"] - first["low"])


def test_metrics_that_only_one_has_are_left_out(tmp_path, make_evaluation):
    a = read_evaluation(make_evaluation(tmp_path / "a", {"towers": 0.5}))
    b = read_evaluation(make_evaluation(tmp_path / "b", {"towers": 0.5}, metric="R@10"))
    assert compare(a, b) == []


def test_an_evaluation_is_found_by_every_name_it_has(tmp_path, make_bundle):
    bundle_id, evaluation = make_bundle(tmp_path, "a", {"towers": 0.5})
    Store(tmp_path).set_champion(bundle_id, "test")
    stage = {"stage": "evaluate", "path": str(evaluation)}
    Workspace(tmp_path).write_record("runs", RUN, {"stages": [stage]})
    for name in (
        str(evaluation),
        str(tmp_path / "bundles" / bundle_id),
        bundle_id,
        "champion",
        RUN,
        str(tmp_path),
    ):
        assert find_evaluation(name, tmp_path) == evaluation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f" * 32, "has no run"),
        ("0" * 16, "has no bundle"),
        ("champion", "has no champion; `twotower run CONFIG` makes"),
    ],
)
def test_an_unknown_name_says_what_is_missing(tmp_path, name, message):
    with pytest.raises(ArtifactError, match=message):
        find_evaluation(name, tmp_path)


def test_an_id_without_a_store_asks_for_one():
    with pytest.raises(ArtifactError, match="add --store STORE"):
        find_evaluation("0" * 16, None)
