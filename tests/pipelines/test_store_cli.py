import json
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from features.artifact import Artifact, publish
from pipelines.cli import app
from pipelines.workspace import Workspace
from serving.store import Store


def run(*arguments: object) -> tuple[int, str, dict]:
    """Run a command in this process; returns its exit code, what it said, and its JSON."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    lines = done.stdout.strip().splitlines()
    return done.exit_code, done.stderr, json.loads(lines[-1]) if lines else {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three bundles, all of them champions in turn."""
    opened = Store(tmp_path / "store")
    opened.bundles.mkdir(parents=True)
    for place in range(3):
        row = {"system": "towers", "slice": "all", "metric": "nDCG@10", "value": 0.5 + place / 10}
        content = {
            "documents": 1000 + place,
            "dimension": 8,
            "similarity": "cosine",
            "query_inputs": ["text"],
            "index": {"factory": "Flat"},
            "evaluation": [row, {**row, "system": "bm25"}],
        }
        with publish(tmp_path / "new", "bundle", content) as staging:
            (staging / "file").write_bytes(bytes(1_000_000))
        bundle_id = Artifact.read(tmp_path / "new").digest[:16]
        (tmp_path / "new").rename(opened.bundles / bundle_id)
        opened.set_champion(bundle_id, "promoted")
        time.sleep(0.01)
    return opened


def test_bundles_are_listed_with_metrics_size_and_the_champion(store: Store):
    code, said, told = run("bundles", store.root)
    assert code == 0
    assert [entry["bundle_id"] for entry in told["bundles"]] == store.bundle_ids()
    assert [entry["champion"] for entry in told["bundles"]] == [False, False, True]
    assert told["bundles"][0]["metrics"] == {"nDCG@10": 0.5}
    assert [entry["documents"] for entry in told["bundles"]] == [1000, 1001, 1002]
    assert all(1_000_000 < entry["bytes"] < 1_010_000 for entry in told["bundles"])
    assert f"{store.bundle_ids()[2]} *" in said
    assert "0.7000" in said


def test_json_is_one_object_also_of_a_command_that_fails_after_or_before_it(store: Store, tmp_path: Path):
    (store.bundles / store.bundle_ids()[0] / "file").unlink()
    for arguments, key in ((["verify", store.root], "bundles"), (["verify", tmp_path / "absent"], "error")):
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        (line,) = done.stdout.splitlines()
        assert (done.exit_code, key in json.loads(line)) == (4, True)


def test_a_damaged_bundle_is_listed_with_what_is_wrong(store: Store):
    (store.bundles / store.bundle_ids()[0] / "file").unlink()
    code, said, told = run("bundles", store.root)
    assert code == 0
    assert "lacks its file" in told["bundles"][0]["damage"]
    assert "lacks its file" in said


def test_a_rollback_is_quick_and_says_what_it_passed_over(store: Store):
    first, second, third = store.bundle_ids()
    (store.bundles / second / "file").write_bytes(b"\1" * 1_000_000)
    started = time.monotonic()
    code, said, told = run("rollback", store.root)
    assert time.monotonic() - started < 5
    assert code == 0
    assert (told["bundle"], told["from"], list(told["passed_over"])) == (first, third, [second])
    assert "passed over" in said
    assert store.champion().bundle_id == first
    code, said, _ = run("rollback", store.root)
    assert code == 4
    assert "no earlier champion" in said


def test_a_rollback_to_a_bundle_by_name(store: Store):
    first = store.bundle_ids()[0]
    assert run("rollback", store.root, "--to", first, "--reason", "complaints")[0] == 0
    assert store.champion().reason == "complaints"


def test_pruning_says_what_goes_and_waits_for_no_run(store: Store):
    first, second, third = store.bundle_ids()
    code, said, told = run("prune", store.root, "--keep", 0, "--dry-run")
    assert (code, told["removed"], list(told["kept"])) == (0, [first], [second, third])
    assert f"would remove {first}" in said
    with Workspace(store.root).lock():
        code, said, _ = run("prune", store.root, "--keep", 0)
    assert code == 6
    assert "in use by another run" in said
    assert run("prune", store.root, "--keep", 0)[2]["removed"] == [first]
    assert store.bundle_ids() == [second, third]


def test_verify_names_each_refused_bundle_and_ends_with_4(store: Store):
    first = store.bundle_ids()[0]
    shutil.rmtree(store.bundles / store.bundle_ids()[1])
    code, said, told = run("verify", store.root, first)
    assert code == 4
    assert list(told["bundles"]) == [first]
    assert "1 of 1 bundle refused" in said


@pytest.mark.parametrize("command", [["bundles"], ["verify"], ["rollback"], ["prune", "--keep", "1"]])
def test_a_damaged_pointer_is_one_clear_line(store: Store, command: list[str]):
    store.pointer.write_text('{"format": 1')
    code, said, _ = run(command[0], store.root, *command[1:])
    assert code == 4
    assert "champion.json is damaged" in said
    assert len(said.strip().splitlines()) == 1
