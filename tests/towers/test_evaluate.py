import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from features.artifact import Artifact, publish
from features.errors import ArtifactError, SchemaError
from towers.evaluate import EvaluateConfig, evaluate
from towers.metrics import EvaluationError
from towers.two_tower import TowersConfig, build_two_tower

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
CONFIG = EvaluateConfig(metrics=("R@2", "nDCG@2", "Success@1"), decision="nDCG@2", bootstrap=200)
STRINGS = pa.list_(pa.string())

DOCUMENTS = [  # doc_id, title, clicks, ctr, cold
    ("d0", "red shoe", 9, 0.3, False),
    ("d1", "blue shoe", 4, 0.6, False),
    ("d2", "red hat", 2, 0.2, False),
    ("d3", "green tea", 0, 0.1, True),
]
QUERIES = [  # query_id, text, relevant, relevance, excluded, frequency
    ("q0", "red shoe", ["d0"], [1.0], [], 6),
    ("q1", "shoe", ["d1", "d0"], [2.0, 1.0], [], 2),
    ("q2", "tea", ["d3"], [1.0], ["d0"], 0),
    ("q3", "nobody clicked", [], [], [], 0),
]
LISTS = [  # impression_id, query_id, doc_ids, clicked
    ("i0", "q0", ["d1", "d0"], [False, True]),
    ("i1", "q2", ["d3", "d2"], [True, False]),
    ("i2", "q0", ["d0", "d3", "d2"], [False, False, True]),
    ("i3", "q3", ["d0", "d3"], [True, False]),
]
TRAIN = [("red shoe", 6), ("shoe", 2), ("hat", 1)]


def write_examples(path: Path, documents=DOCUMENTS, queries=QUERIES, lists=LISTS, train=TRAIN) -> Path:
    text = pa.string()
    tables = {
        "documents": pa.table(
            {
                "doc_id": pa.array([row[0] for row in documents], text),
                "title": pa.array([row[1] for row in documents], text),
                "text": pa.array([""] * len(documents), text),
                "clicks": pa.array([row[2] for row in documents], pa.int64()),
                "ctr": pa.array([row[3] for row in documents], pa.float64()),
                "cold": pa.array([row[4] for row in documents], pa.bool_()),
            }
        ),
        "test": pa.table(
            {
                "query_id": pa.array([row[0] for row in queries], text),
                "query_key": pa.array([row[1] for row in queries], text),
                "query_text": pa.array([row[1] for row in queries], text),
                "history": pa.array([[]] * len(queries), STRINGS),
                "user_id": pa.array([None] * len(queries), text),
                "relevant_doc_ids": pa.array([row[2] for row in queries], STRINGS),
                "relevance": pa.array([row[3] for row in queries], pa.list_(pa.float64())),
                "excluded_doc_ids": pa.array([row[4] for row in queries], STRINGS),
                "seen_query": pa.array([row[5] > 0 for row in queries], pa.bool_()),
                "frequency": pa.array([row[5] for row in queries], pa.int64()),
                "timestamp": pa.array([WHEN] * len(queries), pa.timestamp("us", tz="UTC")),
            }
        ),
        "test_lists": pa.table(
            {
                "impression_id": pa.array([row[0] for row in lists], text),
                "query_id": pa.array([row[1] for row in lists], text),
                "doc_ids": pa.array([row[2] for row in lists], STRINGS),
                "clicked": pa.array([row[3] for row in lists], pa.list_(pa.bool_())),
            }
        ),
        "train": pa.table({"query_key": pa.array([key for key, n in train for _ in range(n)], text)}),
    }
    with publish(path, "examples", {}) as staging:
        for name, table in tables.items():
            pq.write_table(table, staging / f"{name}.parquet")
    return path


def write_checkpoint(path: Path, documents=DOCUMENTS, weight: float | None = None, kind="checkpoint") -> Path:
    """Real, untrained towers; every weight set to `weight` if it is given."""
    torch.manual_seed(0)
    frame = pd.DataFrame(
        {
            "doc_id": [row[0] for row in documents],
            "title": [row[1] for row in documents],
            "text": [""] * len(documents),
            "clicks": [row[2] for row in documents],
            "ctr": [row[3] for row in documents],
        }
    )
    queries = pd.DataFrame({"query_text": ["red shoe", "tea"], "history": [[], []], "user_id": [None, None]})
    model = build_two_tower(TowersConfig(dimension=8), frame, queries)
    if weight is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(weight)
    with publish(path, kind, {}) as staging:
        model.save(staging if kind == "bundle" else staging / "two_tower")
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("evaluation")
    examples = write_examples(folder / "examples")
    return evaluate(examples, write_checkpoint(folder / "checkpoint"), folder / "evaluation", CONFIG)


def result_of(artifact: Artifact) -> dict:
    return json.loads((artifact.path / "evaluation.json").read_text())


def cell(rows: list[dict], system: str, part: str, metric: str) -> dict:
    found = [row for row in rows if (row["system"], row["slice"], row["metric"]) == (system, part, metric)]
    assert len(found) == 1
    return found[0]


def test_the_artifact_has_the_promised_columns_with_all_first(artifact):
    result = result_of(artifact)
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


def test_the_numbers_are_those_that_one_computes_by_hand(artifact):
    rows = result_of(artifact)["evaluation"]
    # popularity ranks d0 d1 d2 d3, and d1 d2 d3 where d0 is excluded
    assert cell(rows, "popularity", "all", "R@2")["value"] == pytest.approx((1 + 1 + 0) / 3)
    assert cell(rows, "popularity", "all", "Success@1")["value"] == pytest.approx(2 / 3)
    graded = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert cell(rows, "popularity", "all", "nDCG@2")["value"] == pytest.approx((1 + graded + 0) / 3)
    assert cell(rows, "popularity", "all", "nDCG@2")["n"] == 3


def test_list_auc_is_the_mean_over_queries_of_the_mean_over_their_lists(artifact):
    # by clicks: i0 has its click above, i2 between two others, i1 below; i3 belongs to no evaluated query
    found = cell(result_of(artifact)["evaluation"], "popularity", "all", "ListAUC")
    assert found["value"] == pytest.approx(((1 + 0.5) / 2 + 0) / 2)
    assert found["n"] == 2


def test_slices_have_their_own_queries_and_relevance(artifact):
    rows = result_of(artifact)["evaluation"]
    assert artifact.content["slices"] == {
        "all": 3, "head": 1, "torso": 0, "tail": 2, "seen_query": 2, "unseen_query": 1,
        "history": 0, "no_history": 0, "cold_documents": 1,
    }  # fmt: skip
    assert cell(rows, "popularity", "head", "R@2")["value"] == 1.0
    assert cell(rows, "popularity", "tail", "R@2")["value"] == 0.5
    assert cell(rows, "bm25", "cold_documents", "Success@1")["value"] == 1.0
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


def test_the_per_query_table_averages_to_the_evaluation(artifact):
    rows = result_of(artifact)["evaluation"]
    table = pd.read_parquet(artifact.path / "per_query.parquet")
    assert list(table.columns) == ["query_id", "system", "metric", "value"]
    for (system, metric), values in table.groupby(["system", "metric"])["value"]:
        assert cell(rows, system, "all", metric)["value"] == pytest.approx(values.mean())
        assert cell(rows, system, "all", metric)["n"] == len(values)


def test_paired_differences_are_those_of_the_means(artifact):
    result = result_of(artifact)
    for pair in result["paired"]:
        a, b = (cell(result["evaluation"], pair[side], pair["slice"], pair["metric"]) for side in "ab")
        assert pair["a"] == "towers"
        assert pair["difference"] == pytest.approx(a["value"] - b["value"])
        assert 0 < pair["p"] <= 1
    assert {pair["b"] for pair in result["paired"]} == {"random", "popularity", "ctr", "bm25"}


def test_the_same_evaluation_has_the_same_digest(artifact, tmp_path):
    folder = artifact.path.parent
    again = evaluate(folder / "examples", folder / "checkpoint", tmp_path / "again", CONFIG)
    assert again.digest == artifact.digest


def test_a_bundle_is_evaluated_like_the_checkpoint_that_it_came_from(artifact, tmp_path):
    bundle = write_checkpoint(tmp_path / "bundle", kind="bundle")
    again = evaluate(artifact.path.parent / "examples", bundle, tmp_path / "again", CONFIG)
    assert result_of(again) == result_of(artifact)


def test_a_collapsed_model_scores_like_random(tmp_path):
    documents = [(f"d{n:03}", f"word{n}", 0, 0.1, True) for n in range(200)]
    queries = [(f"q{n}", "word", [f"d{n % 20:03}"], [1.0], [], 0) for n in range(300)]
    examples = write_examples(tmp_path / "examples", documents, queries, [])
    checkpoint = write_checkpoint(tmp_path / "checkpoint", documents, weight=0.0)
    config = EvaluateConfig(metrics=("R@50",), decision="R@50", systems=("towers", "random", "popularity"))
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", config)
    for row in result_of(artifact)["evaluation"]:
        assert row["value"] == pytest.approx(50 / 200, abs=0.08)
    verdict = artifact.content["verdict"]
    assert not verdict["passed"]
    assert "do not beat random" in verdict["sentence"]
    assert "Not compared with bm25" in verdict["sentence"]


def test_broken_weights_are_an_error_and_leave_nothing_behind(tmp_path):
    examples = write_examples(tmp_path / "examples")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", weight=float("nan"))
    with pytest.raises(EvaluationError, match=r"'towers'.*not finite.*'q0'"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "examples"]


def test_one_document_and_one_query_are_evaluated_and_decide_nothing(tmp_path):
    examples = write_examples(tmp_path / "examples", DOCUMENTS[:1], QUERIES[:1], [], [])
    checkpoint = write_checkpoint(tmp_path / "checkpoint", DOCUMENTS[:1])
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", EvaluateConfig())
    for row in result_of(artifact)["evaluation"]:
        assert (row["value"], row["low"], row["high"], row["n"]) == (1.0, 1.0, 1.0, 1)
        assert row["metric"] != "ListAUC"
    assert not artifact.content["verdict"]["passed"]


def test_towers_alone_are_compared_with_nothing(tmp_path):
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    config = EvaluateConfig(systems=("towers",), bootstrap=100)
    result = result_of(evaluate(examples, checkpoint, tmp_path / "evaluation", config))
    assert result["paired"] == []
    assert "Not compared with random, popularity, bm25" in result["verdict"]["sentence"]


def test_baselines_alone_leave_no_verdict_on_the_towers(tmp_path):
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    config = EvaluateConfig(systems=("random", "bm25"), bootstrap=100)
    verdict = evaluate(examples, checkpoint, tmp_path / "evaluation", config).content["verdict"]
    assert not verdict["passed"]
    assert "nothing can be said" in verdict["sentence"]


def test_a_relevant_document_that_is_not_to_be_ranked_does_not_count(tmp_path):
    queries = [("q0", "shoe", ["d0", "d1"], [1.0, 1.0], ["d0"], 1), ("q1", "tea", ["d3"], [1.0], ["d3"], 0)]
    examples = write_examples(tmp_path / "examples", queries=queries, lists=[])
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", CONFIG)
    assert artifact.content["queries"]["relevant_but_excluded"] == 2
    assert artifact.content["queries"]["evaluated"] == 1
    rows = result_of(artifact)["evaluation"]
    assert cell(rows, "popularity", "all", "R@2")["value"] == 1.0
    assert cell(rows, "popularity", "all", "Success@1")["value"] == 1.0  # d0, the most clicked, is not ranked


def test_a_test_table_without_a_relevant_document_says_so(tmp_path):
    examples = write_examples(tmp_path / "examples", queries=QUERIES[3:], lists=[])
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(EvaluationError, match=r"none of 1 queries has a relevant document"):
        evaluate(examples, checkpoint, tmp_path / "evaluation", CONFIG)


def test_a_missing_checkpoint_is_a_line_that_says_so(tmp_path):
    examples = write_examples(tmp_path / "examples")
    with pytest.raises(ArtifactError, match=r"not a finished artifact"):
        evaluate(examples, tmp_path / "nowhere", tmp_path / "evaluation", CONFIG)


def test_two_test_rows_of_one_query_id_are_refused(tmp_path):
    examples = write_examples(tmp_path / "examples", queries=[QUERIES[0], QUERIES[0]], lists=[])
    with pytest.raises(SchemaError, match=r"'q0' more than once"):
        evaluate(examples, write_checkpoint(tmp_path / "checkpoint"), tmp_path / "evaluation", CONFIG)


def write_qrels(path: Path, rows: list[tuple]) -> Path:
    columns = ("query_id", "query_text", "doc_id", "relevance")
    pd.DataFrame(rows, columns=columns).to_parquet(path, index=False)
    return path


def test_judged_queries_take_the_place_of_the_test_table(tmp_path):
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
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    metrics = ("R@1", "R(rel=100)@1", "nDCG@1")
    config = EvaluateConfig(metrics=metrics, decision="nDCG@1", bootstrap=100)
    artifact = evaluate(examples, checkpoint, tmp_path / "evaluation", config, qrels=qrels)
    rows = result_of(artifact)["evaluation"]
    assert artifact.content["queries"] == {
        "queries": 4, "evaluated": 2, "without_relevant": 2, "relevant_but_excluded": 0,
        "judgements": 6, "judged_not_in_catalogue": 1, "lists": 0,
    }  # fmt: skip
    assert cell(rows, "bm25", "all", "R@1")["value"] == pytest.approx((0.5 + 1) / 2)
    exact = cell(rows, "bm25", "all", "R(rel=100)@1")
    assert (exact["value"], exact["n"]) == (1.0, 1)
    assert artifact.content["slices"]["seen_query"] == 1  # by the normalised text
    assert artifact.content["slices"]["head"] == 1
    assert "ListAUC" not in {row["metric"] for row in rows}


def test_judgements_in_any_order_and_given_twice_are_the_same_judgements(tmp_path):
    rows = [("j0", "shoe", "d0", 1), ("j0", "shoe", "d1", 3), ("j1", "tea", "d3", 2)]
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    plain = write_qrels(tmp_path / "plain.parquet", rows)
    twice = write_qrels(tmp_path / "twice.parquet", [rows[2], ("j0", "shoe", "d1", 0), rows[1], rows[0]])
    values = []
    for qrels in (plain, twice):
        artifact = evaluate(examples, checkpoint, tmp_path / f"of_{qrels.stem}", CONFIG, qrels=qrels)
        rows_of_it = result_of(artifact)["evaluation"]
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
def test_judgements_that_contradict_themselves_are_refused(tmp_path, rows, message):
    qrels = write_qrels(tmp_path / "qrels.parquet", rows)
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(SchemaError, match=message):
        evaluate(examples, checkpoint, tmp_path / "evaluation", CONFIG, qrels=qrels)


def test_judgements_without_a_column_or_a_file_are_refused(tmp_path):
    examples, checkpoint = write_examples(tmp_path / "examples"), write_checkpoint(tmp_path / "checkpoint")
    pd.DataFrame({"query_id": ["j0"]}).to_parquet(tmp_path / "qrels.parquet")
    with pytest.raises(SchemaError, match=r"lacks the column query_text"):
        evaluate(examples, checkpoint, tmp_path / "e", CONFIG, qrels=tmp_path / "qrels.parquet")
    with pytest.raises(SchemaError, match=r"does not exist"):
        evaluate(examples, checkpoint, tmp_path / "e", CONFIG, qrels=tmp_path / "absent.parquet")


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


def test_a_list_of_an_unknown_query_is_refused(tmp_path):
    examples = write_examples(tmp_path / "examples", lists=[("i0", "nobody", ["d0", "d1"], [True, False])])
    with pytest.raises(SchemaError, match=r"not in test.parquet"):
        evaluate(examples, write_checkpoint(tmp_path / "checkpoint"), tmp_path / "evaluation", CONFIG)
