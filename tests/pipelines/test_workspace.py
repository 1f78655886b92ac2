import subprocess
import sys

import pytest

from features.artifact import publish, sha256_of_file
from features.errors import SchemaError
from pipelines import workspace as module
from pipelines.workspace import StoreInUseError, Workspace, stage_key


def test_equal_work_has_an_equal_key_and_any_difference_another():
    key = stage_key("train", {"rate": 1}, {"examples": "a"})
    assert key == stage_key("train", {"rate": 1}, {"examples": "a"})
    others = [
        stage_key("evaluate", {"rate": 1}, {"examples": "a"}),
        stage_key("train", {"rate": 2}, {"examples": "a"}),
        stage_key("train", {"rate": 1}, {"examples": "b"}),
        stage_key("train", {"rate": 1}, {"lake": "a"}),
    ]
    assert key not in others
    assert len(set(others)) == len(others)


def test_another_text_normaliser_is_other_work(monkeypatch):
    key = stage_key("train", {"rate": 1}, {"examples": "a"})
    monkeypatch.setattr(module, "NORMALISER", "another")
    assert stage_key("train", {"rate": 1}, {"examples": "a"}) != key


def test_a_finished_artifact_is_found_and_a_damaged_one_is_not(tmp_path):
    store = Workspace(tmp_path)
    assert store.find("train", "k") is None
    with publish(store.target("train", "k"), "checkpoint", {}) as staging:
        (staging / "weights").write_text("1234")
    assert store.find("train", "k") is not None
    (tmp_path / "checkpoints" / "k" / "weights").write_text("123")
    assert store.find("train", "k") is None


def test_input_digests_are_those_of_the_bytes(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("a")
    store = Workspace(tmp_path / "store")
    assert store.digests([file]) == {str(file): sha256_of_file(file)}
    file.write_text("bb")
    assert store.digests([file]) == {str(file): sha256_of_file(file)}


def test_an_unchanged_file_is_hashed_once(tmp_path, monkeypatch):
    file = tmp_path / "log.csv"
    file.write_text("a")
    hashed = []

    def counted(path):
        hashed.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr(module, "sha256_of_file", counted)
    for _ in range(3):
        Workspace(tmp_path / "store").digests([file])
    assert hashed == [file]


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(SchemaError, match=r"absent\.csv does not exist; check `source`"):
        Workspace(tmp_path / "store").digests([tmp_path / "absent.csv"])


def test_records_are_read_back_and_a_torn_one_is_ignored(tmp_path):
    store = Workspace(tmp_path)
    store.write_record("exports", "a", {"bundle": "1"})
    assert store.read_record("exports", "a") == {"bundle": "1"}
    (tmp_path / "exports" / "b.json").write_text('{"bundle":')
    assert [record["bundle"] for record in store.records("exports")] == ["1"]


def test_two_runs_do_not_share_a_store(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pipelines.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout.readline().strip() == "locked"
        with (
            pytest.raises(StoreInUseError, match=f"in use by another run \\(process {other.pid} on "),
            Workspace(tmp_path).lock(),
        ):
            pass
        other.stdin.close()
        other.wait(timeout=30)
    with Workspace(tmp_path).lock():
        pass
