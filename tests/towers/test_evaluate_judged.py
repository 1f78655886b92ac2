"""Evaluation on judged queries, given as a table, in place of the test queries of the log."""

from pathlib import Path

import pandas as pd
import pytest

from features.errors import SchemaError
from towers.evaluate import EvaluateConfig, evaluate


def write_qrels(path: Path, rows: list[tuple]) -> Path:
    columns = ("query_id", "query_text", "doc_id", "relevance")
    pd.DataFrame(rows, columns=columns).to_parquet(path, index=False)
    return path


def test_judged_queries_take_the_place_of_the_test_table(tmp_path, four):
    qrels = write_qrels(
        tmp_path / "qrels.parquet",
        [
            ("j0", "Red  SHOE", "d0", 100),
            ("j0", "Red  SHOE", "d2", 10),
            ("j0", "Red  SHOE", "d1", 0),
            ("j1", "tea", "d3", 10),
            ("j2", "coffee", "elsewhere", 100),
            ("j3", "milk", "d0", 0),
        ],
    )
    examples, checkpoint = four.inputs(tmp_path)
    metrics = ("R@1", "R(rel=100)@1", "nDCG@1")
    config = EvaluateConfig(metrics=metrics, decision="nDCG@1", bootstrap=100)
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", config, qrels=qrels)
    rows = four.result_of(artifact)["evaluation"]
    assert artifact.content["queries"] == {
        "queries": 4, "evaluated": 2, "without_relevant": 2, "relevant_but_excluded": 0,
        "judgements": 6, "judged_not_in_catalogue": 1, "lists": 0,
    }  # fmt: skip
    assert four.cell(rows, "bm25", "all", "R@1")["value"] == pytest.approx((0.5 + 1) / 2)
    exact = four.cell(rows, "bm25", "all", "R(rel=100)@1")
    assert (exact["value"], exact["n"]) == (1.0, 1)
    assert artifact.content["slices"]["seen_query"] == 1  # by the normalised text
    assert artifact.content["slices"]["head"] == 1
    assert "ListAUC" not in {row["metric"] for row in rows}


def test_judgements_in_any_order_and_given_twice_are_the_same_judgements(tmp_path, four):
    rows = [("j0", "shoe", "d0", 1), ("j0", "shoe", "d1", 3), ("j1", "tea", "d3", 2)]
    examples, checkpoint = four.inputs(tmp_path)
    plain = write_qrels(tmp_path / "plain.parquet", rows)
    twice = write_qrels(tmp_path / "twice.parquet", [rows[2], ("j0", "shoe", "d1", 0), rows[1], rows[0]])
    values = []
    for qrels in (plain, twice):
        artifact = evaluate(examples, checkpoint, tmp_path / f"of_{qrels.stem}", four.config, qrels=qrels)
        rows_of_it = four.result_of(artifact)["evaluation"]
        values.append({(r["system"], r["slice"], r["metric"]): r["value"] for r in rows_of_it})
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("j0", "shoe", "d0", 1), ("j0", "boot", "d0", 1)], r"several texts.*'j0'"),
        ([("j0", None, "d0", 1)], r"without query_text"),
        ([("j0", "shoe", "d0", None)], r"without relevance"),
    ],
)
def test_judgements_that_contradict_themselves_are_refused(tmp_path, rows, message, four):
    qrels = write_qrels(tmp_path / "qrels.parquet", rows)
    examples, checkpoint = four.inputs(tmp_path)
    with pytest.raises(SchemaError, match=message):
        evaluate(examples, checkpoint, tmp_path / "evaluation", four.config, qrels=qrels)


def test_judgements_without_a_column_or_a_file_are_refused(tmp_path, four):
    examples, checkpoint = four.inputs(tmp_path)
    pd.DataFrame({"query_id": ["j0"]}).to_parquet(tmp_path / "qrels.parquet")
    with pytest.raises(SchemaError, match=r"lacks the column query_text"):
        evaluate(examples, checkpoint, tmp_path / "e", four.config, qrels=tmp_path / "qrels.parquet")
    with pytest.raises(SchemaError, match=r"does not exist"):
        evaluate(examples, checkpoint, tmp_path / "e", four.config, qrels=tmp_path / "absent.parquet")
