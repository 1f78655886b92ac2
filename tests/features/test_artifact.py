import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.artifact import MANIFEST, Artifact, digest_of, publish, write_json
from features.errors import ArtifactError


def published(path: Path, **content: Any) -> Artifact:
    with publish(path, "lake", dict(content)) as staging:
        (staging / "part").mkdir()
        (staging / "part" / "rows.bin").write_bytes(b"rows")
    return Artifact.read(path)


def test_a_published_directory_says_what_it_holds(tmp_path: Path) -> None:
    artifact = published(tmp_path / "a", rows=3)
    assert artifact.kind == "lake"
    assert artifact.content["rows"] == 3
    assert artifact.manifest["files"]["part/rows.bin"]["bytes"] == 4
    assert Artifact.read(tmp_path / "a", "lake", verify=True).digest == artifact.digest


def test_time_is_no_part_of_a_digest(tmp_path: Path) -> None:
    first = published(tmp_path / "a", rows=3, created_at="yesterday", seconds=1.5)
    second = published(tmp_path / "b", rows=3, created_at="today", seconds=2.5)
    other = published(tmp_path / "c", rows=4, created_at="today", seconds=2.5)
    assert first.digest == second.digest != other.digest


def test_a_failure_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    published(tmp_path / "a", rows=1)

    def fail() -> None:
        with publish(tmp_path / "a", "lake", {"rows": 2}) as staging:
            (staging / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert Artifact.read(tmp_path / "a").content["rows"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_publishing_again_replaces_the_directory(tmp_path: Path) -> None:
    published(tmp_path / "a", rows=1)
    assert published(tmp_path / "a", rows=2).content["rows"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_publishes_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from features.artifact import publish\n"
        "with publish(Path(sys.argv[1]), 'lake', {}) as staging:\n"
        "    (staging / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        Artifact.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / MANIFEST).unlink(), "not a finished artifact"),
        (lambda path: (path / MANIFEST).write_text("{"), "is damaged"),
        (lambda path: (path / MANIFEST).write_text("{}"), "not a manifest"),
        (lambda path: (path / "part" / "rows.bin").unlink(), "lacks its file"),
        (lambda path: (path / "part" / "rows.bin").write_bytes(b"longer"), "has 6 bytes"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    published(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message):
        Artifact.read(tmp_path / "a")


def test_a_changed_byte_is_found_when_asked_for(tmp_path: Path) -> None:
    published(tmp_path / "a")
    (tmp_path / "a" / "part" / "rows.bin").write_bytes(b"rowz")
    Artifact.read(tmp_path / "a")
    with pytest.raises(ArtifactError, match="SHA-256"):
        Artifact.read(tmp_path / "a", verify=True)


def test_a_manifest_that_was_edited_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "a", rows=3)
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest["content"]["rows"] = 4
    write_json(tmp_path / "a" / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match="digest does not match"):
        Artifact.read(tmp_path / "a")


def test_a_manifest_without_content_and_a_file_in_place_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    half = {"schema_version": 1, "kind": "lake", "files": {}, "digest": ""}
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(half))
    with pytest.raises(ArtifactError, match="not a manifest of twotower"):
        Artifact.read(tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        Artifact.read(tmp_path / "a" / "manifest.json")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a 'bundle'"):
        Artifact.read(tmp_path / "a", "bundle")


def test_the_order_of_keys_is_no_part_of_a_digest() -> None:
    assert digest_of({"a": 1, "b": [2, "é"]}) == digest_of({"b": [2, "é"], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
