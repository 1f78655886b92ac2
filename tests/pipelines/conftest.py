import json
import os

import numpy as np
import pandas as pd
import pytest

from features.artifact import publish

SYSTEMS = ("towers", "random", "popularity", "bm25")


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
            value = mean + noise + np.random.default_rng(abs(hash(system)) % 1000).normal(0, 0.001, queries)
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
