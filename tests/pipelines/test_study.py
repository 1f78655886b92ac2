import json

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.study import interval
from pipelines.study_config import CollapseStudyConfig

STUDY = """
study: {seeds: [0, 1], pairs: 1000, batches: [16, 32, 64], compared: 64}
"""


def test_every_training_of_the_study_sees_the_same_number_of_pairs():
    study = CollapseStudyConfig()
    for name, plan in study.arms().items():
        seen = sum(stage.batch_size * (stage.steps or 0) for stage in plan)
        assert seen == pytest.approx(study.pairs, rel=0.02), name
        assert all(stage.enter is None for stage in plan)
    assert study.guarded() in study.arms()


def test_the_interval_over_seeds_is_that_of_student():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(
        {"mean": 2.0, "low": 2 - 2.484, "high": 2 + 2.484}, abs=1e-3
    )


def test_a_study_trains_every_arm_and_leaves_report_table_plots_and_mlflow_runs(tmp_path, shop_config):
    shop_config.write_text(shop_config.read_text() + STUDY)
    done = CliRunner().invoke(app, ["study", "collapse", str(shop_config), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    study = CollapseStudyConfig.model_validate(report["study"])
    assert [arm["arm"] for arm in report["arms"]] == [*study.arms(), f"{study.guarded()}, guarded"]
    for arm in report["arms"]:
        assert arm["seeds"] == 2
        assert arm["nDCG@10"]["low"] <= arm["nDCG@10"]["mean"] <= arm["nDCG@10"]["high"]
    folder = tmp_path / "store" / "study"
    assert {"report.json", "table.md", "curves.png", "quality.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 1 + 2 * len(report["arms"])
    assert "curves.png" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    again = CliRunner().invoke(app, ["study", "collapse", str(shop_config), "--json"])
    assert json.loads(again.stdout)["arms"] == report["arms"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()} == before


def test_a_configuration_without_a_study_is_told_what_is_missing(shop_config):
    done = CliRunner().invoke(app, ["study", "collapse", str(shop_config)])
    assert done.exit_code == 2
    assert "study: required by `twotower study collapse`" in done.stderr
