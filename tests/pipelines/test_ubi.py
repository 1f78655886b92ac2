"""A log of User Behavior Insights, from the sample to a bundle that is scored on judged queries.

The log is a format sample, mostly generated: these tests say nothing about quality.
"""

from pathlib import Path

import pytest

from features.qrels import read_qrels
from pipelines.commands import evaluate_bundle
from pipelines.config import load_config
from pipelines.stages import Examples, Ingest, Train
from pipelines.workspace import StageResult, Workspace
from serving.export import export
from serving.store import Store
from towers.record import NoRecorder

CONFIG = Path(__file__).parents[2] / "configs" / "esci-ubi.yaml"
SMALL = [
    "towers.dimension=8",
    "towers.query.text={width: 8, word_buckets: 500, ngram_buckets: 500, max_words: 16}",
    "towers.document.text={width: 8, word_buckets: 500, ngram_buckets: 500, max_words: 16}",
    "train.stages.0={name: only, batch_size: 8, steps: 2}",
    "evaluate.bootstrap=100",
]


@pytest.fixture(scope="module")
def config(shared_data, tmp_path_factory):
    """The configuration of the repository, with small towers and a store of its own."""
    store = tmp_path_factory.mktemp("ubi") / "store"
    return load_config(CONFIG, [f"store={store}", *SMALL], base=CONFIG.parents[1])


@pytest.fixture(scope="module")
def results(config):
    """The lake and the bundle, which is the champion, made without Prefect."""

    def do(stage):
        outcome = stage.run(NoRecorder())
        return outcome, StageResult(stage.name, str(outcome.path), outcome.digest, False, 0.0, "")

    lake, to_examples = do(Ingest(config))
    examples, to_train = do(Examples(config, to_examples))
    checkpoint, _ = do(Train(config, to_train))
    paths = {"examples": examples.path, "checkpoint": checkpoint.path}
    bundle = export(*paths.values(), None, Workspace(config.store).bundles, config.index)
    record = {name: str(path) for name, path in paths.items()} | {"bundle": bundle.path.name}
    Workspace(config.store).write_record("exports", bundle.path.name, record)
    Store(config.store).set_champion(bundle.path.name, "a test")
    return lake, bundle


def test_the_log_and_the_products_are_accounted_for(results):
    content = results[0].content
    for table in ("impressions", "documents"):
        counts = content[table]
        assert (
            counts["accepted"] + counts["duplicates"] + sum(counts["quarantined"].values()) == counts["input"]
        )
    assert content["documents"]["accepted"] == 6764
    assert content["impressions"]["quarantined"] == {"click_not_shown": 41, "unknown_document": 1581}
    assert content["impressions"]["click_events"] == 287


def test_the_judgements_are_150_queries_of_which_only_exact_matches_are_relevant(config):
    judged = read_qrels(config.qrels)
    assert judged["query_id"].nunique() == 150
    assert len(judged) <= 6678
    assert set(judged["relevance"]) == {0.0, 1.0}


def test_the_bundle_is_scored_on_the_judged_queries_with_bm25_beside_it(config, results, shared_data):
    judgements = shared_data / "esci-ubi" / "esci_us_judgments.json.gz"
    summary = evaluate_bundle(config, "champion", judgements)
    assert summary["bundle"] == results[-1].path.name
    rows = {(row["system"], row["metric"]): row for row in summary["evaluation"] if row["slice"] == "all"}
    assert {system for system, _ in rows} == {"towers", "random", "popularity", "ctr", "bm25"}
    assert {row["n"] for row in rows.values()} == {150}
    assert rows["bm25", "R@100"]["value"] > 0.8  # the data's README measured 0.832 with TF-IDF
    assert rows["random", "R@100"]["value"] < 0.05
