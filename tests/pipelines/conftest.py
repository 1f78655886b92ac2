import json
import os

import numpy as np
import pandas as pd
import pytest

from features.artifact import publish


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A real Prefect server on a temporary database, with a temporary home, for the whole session."""
    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield home
    if before is None:
        del os.environ["PREFECT_HOME"]
    else:
        os.environ["PREFECT_HOME"] = before


@pytest.fixture
def make_evaluation():
    """Return a function that publishes an evaluation artifact with given means."""

    def make(path, means, *, examples="e", metric="nDCG@10", queries=200, seed=0):
        noise = np.random.default_rng(seed).normal(0, 0.02, queries)
        frames, rows, paired = [], [], []
        for system, mean in means.items():
            value = mean + noise - noise.mean()
            ids = [f"q{number}" for number in range(queries)]
            frames.append(pd.DataFrame({"query_id": ids, "system": system, "metric": metric, "value": value}))
            spread = 1.96 * value.std() / queries**0.5
            centre = float(value.mean())
            rows.append(
                {"system": system, "slice": "all", "metric": metric, "value": centre}
                | {"low": centre - spread, "high": centre + spread, "n": queries}
            )
            if system != "towers":
                difference = rows[0]["value"] - centre
                paired.append(
                    {"a": "towers", "b": system, "slice": "all", "metric": metric, "difference": difference}
                    | {"low": difference - 0.001, "high": difference + 0.001, "p": 0.01, "n": queries}
                )
        document = {
            "evaluation": rows,
            "paired": paired,
            "verdict": {"sentence": "The towers were measured."},
        }
        with publish(path, "evaluation", {"examples": examples, "qrels": None}) as staging:
            (staging / "evaluation.json").write_text(json.dumps(document))
            pd.concat(frames).to_parquet(staging / "per_query.parquet", index=False)
        return path

    return make


@pytest.fixture
def make_bundle(make_evaluation):
    """Return a function that puts a bundle and its evaluation into a store, as an export would."""

    def make(store, name, means, **options):
        from pipelines.workspace import Workspace

        hidden = store / "bundles" / "hidden"
        with publish(hidden, "bundle", {"name": name}) as staging:
            (staging / "ids.json").write_text(json.dumps([name]))
        bundle_id = json.loads((hidden / "manifest.json").read_text())["digest"][:16]
        hidden.rename(store / "bundles" / bundle_id)
        evaluation = make_evaluation(store / "evaluations" / name, means, **options)
        record = {"bundle": bundle_id, "evaluation": str(evaluation), "examples": "", "checkpoint": ""}
        Workspace(store).write_record("exports", name, record)
        return bundle_id, evaluation

    return make


SHOP = """\
name: tiny
store: {store}
seed: 1

source:
  format: columnar
  path: {data}/impressions.parquet
  documents:
    path: {data}/documents.jsonl.gz
    features: [category, brand, price]

examples:
  query: text

towers:
  dimension: 16
  shared: true
  query: {{kind: features, text: {{width: 16, word_buckets: 2000, ngram_buckets: 2000}}, hidden: [16]}}
  document: {{kind: features, text: {{width: 16, word_buckets: 2000, ngram_buckets: 2000}}, hidden: [16]}}

train:
  stages:
    - {{name: warm-up, batch_size: 64, steps: 30, learning_rate: 0.005}}
    - {{name: wide, batch_size: 128, steps: 30, unclicked_per_query: 1, learning_rate: 0.005}}
  early_stopping: {{metric: "R@10", every: 20, max_queries: 50}}
  log_every: 5
  checkpoint_seconds: 0
  num_threads: 1

evaluate:
  metrics: [nDCG@10, R@10]
  bootstrap: 100

promote:
  require_beats: [random]
"""


@pytest.fixture(scope="session")
def shop_data(tmp_path_factory):
    """The log and catalogue of a very small simulated shop."""
    from features.simulate import SimulateConfig, simulate

    target = tmp_path_factory.mktemp("shop") / "data"
    simulate(
        target, SimulateConfig(sessions=1500, documents=200, queries=100, judged_queries=60, unseen_queries=5)
    )
    return target


@pytest.fixture(scope="session")
def shop_text():
    """The text of the small shop's configuration, with places for `store` and `data`."""
    return SHOP


@pytest.fixture
def shop_config(tmp_path, shop_data):
    """The path of a configuration over the small shop, its store in a temporary folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SHOP.format(store=tmp_path / "store", data=shop_data))
    return path
