import json
import os

import numpy as np
import pandas as pd
import pytest

from features.artifact import Artifact, publish


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


WORDS = ["red", "blue", "green", "shoe", "lamp", "table", "chair", "sofa", "desk", "rug"]

TEN_DOCUMENTS = """\
name: bad
store: {folder}/store
source:
  format: columnar
  path: {folder}/log.csv
  documents:
    path: {folder}/documents.jsonl
    features: [brand]
examples:
  query: text
towers:
  dimension: 8
  shared: true
  query: {{kind: features, text: {{width: 8, word_buckets: 100, ngram_buckets: 100}}}}
  document: {{kind: features, text: {{width: 8, word_buckets: 100, ngram_buckets: 100}}}}
train:
  stages:
    - {{name: only, batch_size: 8, steps: 2}}
  early_stopping: null
"""


def log_of_sixty_lists():
    """Lists of four of ten documents, an hour apart, of which the first is clicked."""
    rows = [
        {
            "impression_id": f"i{number}",
            "query_text": WORDS[number % len(WORDS)],
            "user_id": f"u{number % 7}",
            "timestamp": pd.Timestamp("2024-03-01", tz="UTC") + pd.Timedelta(hours=number),
            "doc_id": f"d{(number + place) % len(WORDS)}",
            "position": place + 1,
            "clicked": place == 0,
        }
        for number in range(60)
        for place in range(4)
    ]
    return pd.DataFrame(rows)


class SmallShop:
    """A folder with a log, a catalogue and a configuration, each of which a test may spoil."""

    log = log_of_sixty_lists()
    documents = pd.DataFrame(
        {"doc_id": [f"d{n}" for n in range(len(WORDS))], "title": WORDS, "brand": ["x", "y"] * 5}
    )

    def __init__(self, folder):
        self.folder = folder
        self.store = folder / "store"
        self.config = folder / "bad.yaml"
        self.config.write_text(TEN_DOCUMENTS.format(folder=folder))
        self.write(self.log, self.documents)

    def write(self, log=None, documents=None):
        if log is not None:
            log.to_csv(self.folder / "log.csv", index=False)
        if documents is not None:
            documents.to_json(self.folder / "documents.jsonl", orient="records", lines=True)

    def run(self, *changes, until="ingest"):
        """Do the stages themselves, without Prefect and MLflow, and return the artifact of the last."""
        from pipelines.config import load_config
        from pipelines.stages import Examples, Ingest, Train
        from pipelines.workspace import StageResult
        from towers.record import NoRecorder

        config = load_config(self.config, changes)
        config.source.files()
        results = []
        for kind in (Ingest, Examples, Train)[: ("ingest", "examples", "train").index(until) + 1]:
            outcome = kind(config, *results[-1:]).run(NoRecorder())
            results.append(StageResult(kind.name, str(outcome.path), outcome.digest, False, 0.0, ""))
        return Artifact.read(outcome.path, verify=True), outcome.summary

    def left(self):
        """Everything that a reader could take for a result, finished or not."""
        folders = ("lake", "examples", "checkpoints", "evaluations", "bundles")
        paths = [path for name in folders for path in (self.store / name).glob("*")]
        return sorted(path.relative_to(self.store).parts[0] for path in paths)


@pytest.fixture
def shop(tmp_path):
    """A small shop to be spoilt."""
    return SmallShop(tmp_path)


@pytest.fixture(scope="session")
def small_shop():
    """Return the class of such shops, for those that outlast a test."""
    return SmallShop


@pytest.fixture(scope="session")
def twotower_says():
    """Return a function that gives the command line words, and returns its exit code and stderr."""
    from typer.testing import CliRunner

    from pipelines.cli import app

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return done.exit_code, done.stderr.strip()

    return run
