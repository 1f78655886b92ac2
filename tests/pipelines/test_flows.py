import asyncio
import json
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from features.artifact import Artifact
from features.errors import ConfigError, SchemaError
from pipelines.cli import app
from pipelines.commands import evaluate_bundle
from pipelines.config import load_config
from pipelines.flows import twotower_run
from pipelines.tracking import without_secrets
from pipelines.workspace import STAGES, StoreInUseError, Workspace
from serving.bundle import load
from serving.bundle_list import runs_of
from serving.judgments import Judgments
from serving.retriever import Retriever
from serving.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shop_data, shop_text, prefect_server):
    """A finished run of the small shop: its folder, configuration and summary. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "tiny.yaml"
    path.write_text(shop_text.format(store=folder / "store", data=shop_data))
    return folder, path, twotower_run(str(path))


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run that may be changed: its configuration and store."""
    folder, path, _ = finished
    shutil.copytree(folder / "store", tmp_path / "store")
    (tmp_path / "tiny.yaml").write_text(path.read_text())
    return str(tmp_path / "tiny.yaml"), [f"store={tmp_path / 'store'}"]


def cached(summary):
    return {stage["stage"]: stage["cached"] for stage in summary["stages"]}


def task_states():
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    async def read():
        async with get_client() as client:
            flows = await client.read_flow_runs()
            newest = max(flows, key=lambda run: run.created)
            runs = await client.read_task_runs(sort=TaskRunSort.EXPECTED_START_TIME_ASC)
            return newest, {
                run.name.rsplit("-", 1)[0]: run.state_name for run in runs if run.flow_run_id == newest.id
            }

    return asyncio.run(read())


def test_a_run_goes_from_logs_to_a_champion_that_answers(finished):
    folder, _, summary = finished
    assert list(cached(summary)) == list(STAGES)
    assert not any(cached(summary).values())
    assert summary["promotion"]["promoted"]
    champion = Store(folder / "store").champion()
    assert champion.bundle_id == summary["promotion"]["bundle"]
    bundle = load(folder / "store" / "bundles" / champion.bundle_id)
    assert len(Retriever(bundle).search("shoes", k=5)) == 5


def test_the_summary_is_json_and_holds_the_evaluation_with_slice_all_first(finished):
    _, _, summary = finished
    rows = json.loads(json.dumps(summary))["evaluation"]
    assert rows[0]["slice"] == "all"
    assert {"towers", "random", "popularity", "bm25"} <= {row["system"] for row in rows}
    assert set(rows[0]) == {"system", "slice", "metric", "value", "low", "high", "n"}


def test_every_stage_records_the_digest_of_its_artifact(finished):
    _, _, summary = finished
    for stage in summary["stages"][:5]:
        assert stage["digest"] == Artifact.read(Path(stage["path"])).digest


def test_a_second_identical_run_does_no_stage_again_and_prefect_says_cached(again):
    summary = twotower_run(again[0], again[1])
    assert summary["all_cached"]
    assert all(cached(summary).values())
    run, states = task_states()
    assert states == dict.fromkeys(STAGES, "Cached")
    assert run.state_name == "Completed"


def test_a_run_signs_what_it_exported_itself_and_nothing_else(again, make_keys, tmp_path):
    key, public = make_keys(tmp_path)
    overrides = [*again[1], f"sign.key={key}"]
    store = Store(tmp_path / "store", (public,))
    unsigned = Store(store.root).champion().bundle_id
    first = twotower_run(again[0], overrides)
    assert [name for name, was in cached(first).items() if not was] == ["export"]
    assert store.bundle(unsigned)  # the same bundle, signed now
    assert twotower_run(again[0], overrides)["all_cached"]
    forged = store.bundle_path("f" * 16)
    shutil.copytree(store.bundle_path(unsigned), forged)
    (forged / "manifest.sig").unlink()
    for record in (store.root / "exports").glob("*.json"):
        record.write_text(record.read_text().replace(unsigned, forged.name))
    assert cached(twotower_run(again[0], overrides))["export"] is False
    assert not (forged / "manifest.sig").exists()
    assert store.champion().bundle_id == unsigned


def test_a_new_evaluation_setting_does_not_train_again(again):
    summary = twotower_run(again[0], [*again[1], "evaluate.bootstrap=150"])
    assert cached(summary) == {
        "ingest": True,
        "examples": True,
        "train": True,
        "evaluate": False,
        "export": False,
        "promote": False,
    }


def test_a_changed_log_is_ingested_again(again, shop_data, tmp_path):
    shutil.copytree(shop_data, tmp_path / "data")
    same = [*again[1], f"source.path={tmp_path / 'data' / 'impressions.parquet'}"]
    assert cached(twotower_run(again[0], same, "ingest")) == {"ingest": True}  # the same bytes elsewhere
    log = pd.read_parquet(tmp_path / "data" / "impressions.parquet")
    log.iloc[: len(log) // 2].to_parquet(tmp_path / "data" / "impressions.parquet", index=False)
    assert cached(twotower_run(again[0], same, "ingest")) == {"ingest": False}


def test_an_artifact_that_is_gone_is_made_again(again, tmp_path, finished):
    _, _, summary = finished
    name = summary["stages"][1]["path"].rsplit("/", 1)[1]
    shutil.rmtree(tmp_path / "store" / "examples" / name)
    done = cached(twotower_run(again[0], again[1]))
    assert done["ingest"]
    assert not done["examples"]
    assert done["train"]  # the same examples were made, digest for digest


def test_a_stage_can_be_done_again_on_request(again):
    done = cached(twotower_run(again[0], again[1], "examples", ["examples"]))
    assert done == {"ingest": True, "examples": False}


def test_a_single_stage_does_what_it_needs_and_no_more(again):
    done = cached(twotower_run(again[0], [*again[1], "examples.history_length=7"], until="examples"))
    assert done == {"ingest": True, "examples": False}


def test_an_unknown_stage_is_refused(finished):
    with pytest.raises(ConfigError, match="'trainn' is not a stage"):
        twotower_run.fn(str(finished[1]), until="trainn")


def test_a_mistake_in_the_input_is_not_tried_again_and_leaves_no_lake(again, tmp_path):
    before = set((tmp_path / "store" / "lake").iterdir())
    with pytest.raises(SchemaError, match="nothing"):
        twotower_run(again[0], [*again[1], f"source.path={tmp_path / 'nothing.parquet'}"])
    run, states = task_states()
    assert states == {"ingest": "Failed"}
    assert run.state_name == "Failed"
    assert set((tmp_path / "store" / "lake").iterdir()) == before


def test_two_runs_on_one_store_take_turns(again, tmp_path):
    with (
        Workspace(tmp_path / "store").lock(),
        pytest.raises(StoreInUseError, match="is in use by another run"),
    ):
        twotower_run(again[0], again[1])


def test_the_run_and_its_stages_are_in_mlflow(finished):
    folder, path, summary = finished
    client = MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    parent = client.get_run(summary["run"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["train.stages.1.batch_size"] == "128"
    assert parent.data.params["seed"] == "1"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{summary['run']}'"
    )
    by_stage = {child.data.tags["stage"]: child for child in children}
    assert set(by_stage) == set(STAGES)
    for stage in summary["stages"]:
        assert by_stage[stage["stage"]].data.tags["digest"] == stage["digest"]
        assert by_stage[stage["stage"]].data.tags["cached"] == "false"
    assert by_stage["examples"].data.tags["input.lake"] == summary["stages"][0]["digest"]
    curve = client.get_metric_history(by_stage["train"].info.run_id, "train/loss")
    assert len(curve) == 12  # 60 steps, every 5
    assert [point.step for point in curve] == list(range(5, 61, 5))
    assert any(key.startswith("event.") for key in by_stage["train"].data.tags)
    metrics = by_stage["evaluate"].data.metrics
    row = summary["evaluation"][0]
    assert metrics[f"{row['system']}/all/{row['metric'].replace('@', '_at_')}"] == pytest.approx(row["value"])
    assert any(key.startswith("bm25/") and key.endswith(".low") for key in metrics)
    assert any("/unseen_query/" in key for key in metrics) or any("/tail/" in key for key in metrics)
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["config.yaml"]
    assert load_config(path).name == "tiny"


def test_the_bundle_is_a_registered_version_with_the_champion_alias(finished):
    folder, _, summary = finished
    client = MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["bundle_id"] == summary["promotion"]["bundle"]
    names = {item.path for item in client.list_artifacts(version.run_id, "bundle")}
    assert {"bundle/manifest.json", "bundle/two_tower.json", "bundle/index"} <= names


def test_cached_stages_are_recorded_as_cached_and_register_nothing_twice(again, tmp_path):
    summary = twotower_run(again[0], again[1])
    client = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    parent = client.get_run(summary["run"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{summary['run']}'"
    )
    assert {child.data.tags["cached"] for child in children} == {"true"}
    assert len(client.search_model_versions("name = 'tiny'")) == 1
    assert any(child.data.metrics for child in children if child.data.tags["stage"] == "evaluate")


def test_nothing_that_was_stored_can_be_unpickled(finished):
    folder, _, _ = finished
    suffixes = {path.suffix for path in (folder / "store").rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}


def test_the_lock_of_a_finished_run_is_free(finished):
    folder, _, _ = finished
    with Workspace(folder / "store").lock():
        pass


def test_a_failed_run_is_failed_in_mlflow(again, tmp_path):
    with pytest.raises(ConfigError):
        twotower_run(again[0], [*again[1], "train.stages.1.batch_size=1000000"])
    client = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    newest = client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=4)
    assert {run.info.run_name: run.info.status for run in newest} == {
        "tiny": "FAILED",
        "ingest": "FINISHED",
        "examples": "FINISHED",
        "train": "FAILED",
    }
    assert all("error" in run.data.tags for run in newest if run.info.status == "FAILED")


def test_judged_queries_take_the_place_of_held_out_clicks(again, shop_data):
    summary = twotower_run(
        again[0], [*again[1], f"qrels.path={shop_data / 'qrels.parquet'}"], until="evaluate"
    )
    assert cached(summary)["train"]
    assert not cached(summary)["evaluate"]
    judged = pd.read_parquet(shop_data / "qrels.parquet")
    assert summary["evaluation"][0]["n"] == judged["query_text"].nunique()
    assert "ListAUC" not in {row["metric"] for row in summary["evaluation"]}


def test_a_bundle_is_scored_on_judged_queries_with_bm25_beside_it(again, shop_data, tmp_path):
    config = load_config(Path(again[0]), again[1])
    summary = evaluate_bundle(config, "champion", shop_data / "qrels.parquet")
    assert {"towers", "bm25"} <= {row["system"] for row in summary["evaluation"]}
    assert summary["bundle"] == Store(tmp_path / "store").champion().bundle_id
    with_clicks = evaluate_bundle(config, summary["bundle"], None)
    assert with_clicks["evaluation"][0]["n"] != summary["evaluation"][0]["n"]


def test_judgments_of_the_page_are_what_a_bundle_is_scored_on(again, shop_data):
    config = load_config(Path(again[0]), [*again[1], f"qrels.path={shop_data / 'qrels.parquet'}"])
    truth = pd.read_parquet(shop_data / "qrels.parquet").query("relevance > 0")
    judgments = Judgments(config.store)
    for row in truth.groupby("query_text").head(2).head(12).itertuples():
        judgments.judge(row.query_text.upper(), row.doc_id, 2)
    queries = truth.groupby("query_text").head(2).head(12)["query_text"].nunique()
    first = evaluate_bundle(config, "champion", judgments.path)
    assert first["evaluation"][0]["n"] == queries
    judgments.judge("another query", truth["doc_id"].iloc[0], 3)
    assert evaluate_bundle(config, "champion", judgments.path)["evaluation"][0]["n"] == queries + 1


def test_a_run_records_where_mlflow_has_it(again):
    summary = twotower_run(again[0], again[1])
    config = load_config(Path(again[0]), again[1])
    record = json.loads((config.store / "runs" / f"{summary['run']}.json").read_text(encoding="utf-8"))
    client = MlflowClient(record["tracking"]["uri"])
    assert client.get_run(summary["run"]).info.experiment_id == record["tracking"]["experiment_id"]
    made = runs_of(Store(config.store))[Store(config.store).champion().bundle_id]
    assert (made["run_id"], made["experiment_id"]) == (summary["run"], record["tracking"]["experiment_id"])


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://anna:secret@ml.example.org/mlflow", "https://ml.example.org/mlflow"),
        ("https://ml.example.org", "https://ml.example.org"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_the_record_of_a_run_holds_no_password(uri, shown):
    assert without_secrets(uri) == shown


def test_a_bundle_that_is_no_better_is_refused_and_the_refusal_remembered(again, tmp_path):
    before = Store(tmp_path / "store").champion()
    changes = [
        *again[1],
        "index.k=50",
        "promote.require_beats=[random, bm25]",
        "evaluate.systems=[towers, random]",
    ]
    first = twotower_run(again[0], changes)
    assert not first["promotion"]["promoted"]
    assert "baseline bm25 was not measured" in first["promotion"]["reason"]
    assert Store(tmp_path / "store").champion() == before
    sets = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["run", again[0], *sets, "--json"])
    assert done.exit_code == 5
    second = json.loads(done.stdout.splitlines()[-1])
    assert second["all_cached"]
    assert second["promotion"] == first["promotion"]
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"twotower: bundle {first['promotion']['bundle']} refused (")
    assert f"serves {before.bundle_id} as before" in last
    again_by_force = shlex.split(last.partition("promote it all the same: ")[2])
    assert again_by_force == ["twotower", "promote", again[0], *sets, "--force"]
