import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from features.artifact import Artifact
from features.errors import ArtifactError, SchemaError
from towers.evaluate import EvaluateConfig, evaluate
from towers.metrics import EvaluationError


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, four) -> Artifact:
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate(*four.inputs(folder), folder / "evaluation", four.config)


def test_the_artifact_has_the_promised_columns_with_all_first(artifact, four):
    result = four.result_of(artifact)
    assert artifact.kind == "evaluation"
    assert {tuple(row) for row in result["evaluation"]} == {
        ("system", "slice", "metric", "value", "low", "high", "n")
    }
    assert {tuple(row) for row in result["paired"]} == {
        ("a", "b", "slice", "metric", "difference", "low", "high", "p", "n")
    }
    first = [row for row in result["evaluation"] if row["slice"] == "all"]
    assert result["evaluation"][: len(first)] == first
    assert [row["system"] for row in first[::4]] == ["towers", "random", "popularity", "ctr", "bm25"]
    assert [row["metric"] for row in first[:4]] == ["R@2", "nDCG@2", "Success@1", "ListAUC"]


def test_the_numbers_are_those_that_one_computes_by_hand(artifact, four):
    rows = four.result_of(artifact)["evaluation"]
    # popularity ranks d0 d1 d2 d3, and d1 d2 d3 where d0 is excluded
    assert four.cell(rows, "popularity", "all", "R@2")["value"] == pytest.approx((1 + 1 + 0) / 3)
    assert four.cell(rows, "popularity", "all", "Success@1")["value"] == pytest.approx(2 / 3)
    graded = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert four.cell(rows, "popularity", "all", "nDCG@2")["value"] == pytest.approx((1 + graded + 0) / 3)
    assert four.cell(rows, "popularity", "all", "nDCG@2")["n"] == 3


def test_list_auc_is_the_mean_over_queries_of_the_mean_over_their_lists(artifact, four):
    # by clicks: i0 has its click above, i2 between two others, i1 below; i3 belongs to no evaluated query
    found = four.cell(four.result_of(artifact)["evaluation"], "popularity", "all", "ListAUC")
    assert found["value"] == pytest.approx(((1 + 0.5) / 2 + 0) / 2)
    assert found["n"] == 2


def test_slices_have_their_own_queries_and_relevance(artifact, four):
    rows = four.result_of(artifact)["evaluation"]
    assert artifact.content["slices"] == {
        "all": 3, "head": 1, "torso": 0, "tail": 2, "seen_query": 2, "unseen_query": 1,
        "history": 0, "no_history": 0, "cold_documents": 1,
    }  # fmt: skip
    assert four.cell(rows, "popularity", "head", "R@2")["value"] == 1.0
    assert four.cell(rows, "popularity", "tail", "R@2")["value"] == 0.5
    assert four.cell(rows, "bm25", "cold_documents", "Success@1")["value"] == 1.0
    assert not [row for row in rows if row["slice"] == "torso"]
    assert not [row for row in rows if row["slice"] == "cold_documents" and row["metric"] == "ListAUC"]


def test_queries_that_cannot_be_evaluated_are_counted(artifact):
    assert artifact.content["queries"] == {
        "queries": 4,
        "evaluated": 3,
        "without_relevant": 1,
        "relevant_but_excluded": 0,
        "lists": 3,
    }


def test_the_per_query_table_averages_to_the_evaluation(artifact, four):
    rows = four.result_of(artifact)["evaluation"]
    table = pd.read_parquet(artifact.path / "per_query.parquet")
    assert list(table.columns) == ["query_id", "system", "metric", "value"]
    for (system, metric), values in table.groupby(["system", "metric"])["value"]:
        assert four.cell(rows, system, "all", metric)["value"] == pytest.approx(values.mean())
        assert four.cell(rows, system, "all", metric)["n"] == len(values)


def test_paired_differences_are_those_of_the_means(artifact, four):
    result = four.result_of(artifact)
    for pair in result["paired"]:
        a, b = (four.cell(result["evaluation"], pair[side], pair["slice"], pair["metric"]) for side in "ab")
        assert pair["a"] == "towers"
        assert pair["difference"] == pytest.approx(a["value"] - b["value"])
        assert 0 < pair["p"] <= 1
    assert {pair["b"] for pair in result["paired"]} == {"random", "popularity", "ctr", "bm25"}


def test_the_same_evaluation_has_the_same_digest(artifact, tmp_path, four):
    folder = artifact.path.parent
    again = evaluate(folder / "examples", folder / "checkpoint", tmp_path / "again", four.config)
    assert again.digest == artifact.digest


def test_a_bundle_is_evaluated_like_the_checkpoint_that_it_came_from(artifact, tmp_path, four):
    bundle = four.write_checkpoint(tmp_path / "bundle", kind="bundle")
    again = evaluate(artifact.path.parent / "examples", bundle, tmp_path / "again", four.config)
    assert four.result_of(again) == four.result_of(artifact)


def test_a_collapsed_model_scores_like_random(tmp_path, four):
    documents = [(f"d{n:03}", f"word{n}", 0, 0.1, True) for n in range(200)]
    queries = [(f"q{n}", "word", [f"d{n % 20:03}"], [1.0], [], 0) for n in range(300)]
    examples = four.write_examples(tmp_path / "examples", documents, queries, [])
    checkpoint = four.write_checkpoint(tmp_path / "checkpoint", documents, weight=0.0)
    config = EvaluateConfig(metrics=("R@50",), decision="R@50", systems=("towers", "random", "popularity"))
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", config)
    for row in four.result_of(artifact)["evaluation"]:
        assert row["value"] == pytest.approx(50 / 200, abs=0.08)
    verdict = artifact.content["verdict"]
    assert not verdict["passed"]
    assert "do not beat random" in verdict["sentence"]
    assert "Not compared with bm25" in verdict["sentence"]


def test_broken_weights_are_an_error_and_leave_nothing_behind(tmp_path, four):
    examples = four.write_examples(tmp_path / "examples")
    checkpoint = four.write_checkpoint(tmp_path / "checkpoint", weight=float("nan"))
    with pytest.raises(EvaluationError, match=r"'towers'.*not finite.*'q0'"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", four.config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "examples"]


def test_one_document_and_one_query_are_evaluated_and_decide_nothing(tmp_path, four):
    examples = four.write_examples(tmp_path / "examples", four.documents[:1], four.queries[:1], [], [])
    checkpoint = four.write_checkpoint(tmp_path / "checkpoint", four.documents[:1])
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", EvaluateConfig())
    for row in four.result_of(artifact)["evaluation"]:
        assert (row["value"], row["low"], row["high"], row["n"]) == (1.0, 1.0, 1.0, 1)
        assert row["metric"] != "ListAUC"
    assert not artifact.content["verdict"]["passed"]


def test_towers_alone_are_compared_with_nothing(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path)
    config = EvaluateConfig(systems=("towers",), bootstrap=100)
    result = four.result_of(evaluate(examples, checkpoint, tmp_path / "evaluation", config))
    assert result["paired"] == []
    assert "Not compared with random, popularity, bm25" in result["verdict"]["sentence"]


def test_baselines_alone_leave_no_verdict_on_the_towers(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path)
    config = EvaluateConfig(systems=("random", "bm25"), bootstrap=100)
    verdict = evaluate(examples, checkpoint, tmp_path / "evaluation", config).content["verdict"]
    assert not verdict["passed"]
    assert "nothing can be said" in verdict["sentence"]


def test_a_relevant_document_that_is_not_to_be_ranked_does_not_count(tmp_path, four):
    queries = [("q0", "shoe", ["d0", "d1"], [1.0, 1.0], ["d0"], 1), ("q1", "tea", ["d3"], [1.0], ["d3"], 0)]
    examples, checkpoint = four.inputs(tmp_path, queries=queries, lists=[])
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", four.config)
    assert artifact.content["queries"]["relevant_but_excluded"] == 2
    assert artifact.content["queries"]["evaluated"] == 1
    rows = four.result_of(artifact)["evaluation"]
    assert four.cell(rows, "popularity", "all", "R@2")["value"] == 1.0
    first = four.cell(rows, "popularity", "all", "Success@1")
    assert first["value"] == 1.0  # d0, the most clicked, is not ranked


def test_a_test_table_without_a_relevant_document_says_so(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path, queries=four.queries[3:], lists=[])
    with pytest.raises(EvaluationError, match=r"none of 1 queries has a relevant document"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", four.config)


def test_a_missing_checkpoint_is_a_line_that_says_so(tmp_path, four):
    examples = four.write_examples(tmp_path / "examples")
    with pytest.raises(ArtifactError, match=r"not a finished artifact"):
        evaluate(examples, tmp_path / "nowhere", tmp_path / "evaluation", four.config)


def test_two_test_rows_of_one_query_id_are_refused(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path, queries=[four.queries[0], four.queries[0]], lists=[])
    with pytest.raises(SchemaError, match=r"'q0' more than once"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", four.config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["Recall@10"]}, r"'Recall@10' is not a metric"),
        ({"metrics": []}, r"at least 1"),
        ({"metrics": ["R@10"]}, r"decision 'nDCG@10' is not measured"),
        ({"systems": ["towers", "magic"]}, r"'bm25'"),
        ({"bootstrap": 1}, r"greater than or equal to 100"),
        ({"cutoff": 5}, r"Extra inputs"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**settings)


def test_a_name_given_twice_is_measured_once():
    assert EvaluateConfig(metrics=("nDCG@10", "nDCG@10")).metrics == ("nDCG@10",)


def test_a_list_of_an_unknown_query_is_refused(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path, lists=[("i0", "nobody", ["d0", "d1"], [True, False])])
    with pytest.raises(SchemaError, match=r"not in test.parquet"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", four.config)
