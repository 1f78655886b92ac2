import hashlib
import json
import os
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


@pytest.mark.parametrize("name", ["extra.json", "part/extra.parquet", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path, name: str) -> None:
    published(tmp_path / "a")
    (tmp_path / "a" / name).write_text("later")
    with pytest.raises(ArtifactError, match="does not list"):
        Artifact.read(tmp_path / "a")


def test_a_link_in_place_of_a_file_or_folder_is_refused_although_it_leads_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    for name in ("part/rows.bin", "part"):
        path = published(tmp_path / "a").path
        (path / name).rename(tmp_path / "outside")
        (path / name).symlink_to(tmp_path / "outside")
        with pytest.raises(ArtifactError, match="neither a file nor a folder"):
            Artifact.read(path, verify=True)
        (tmp_path / "outside").rename(tmp_path / f"moved-{name.count('/')}")


@pytest.mark.parametrize(
    "name", ["../rows.bin", "/etc/hostname", "part/../part/rows.bin", "part//x", "./x", "manifest.json"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = published(tmp_path / "a").path
    (tmp_path / "rows.bin").write_bytes(b"rows")
    forge(path, files={name: {"bytes": 4, "sha256": "0" * 64}})
    with pytest.raises(ArtifactError, match="names no file of an artifact"):
        Artifact.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"part/rows.bin": None}},
        {"files": {"part/rows.bin": {"bytes": "4", "sha256": ""}}},
        {"files": {"part/rows.bin": {"bytes": True, "sha256": ""}}},
        {"content": None},
        {"schema_version": "1"},
    ],
)
def test_a_manifest_with_other_types_is_refused_in_one_line(tmp_path: Path, changes: Any) -> None:
    path = published(tmp_path / "a").path
    forge(path, **changes)
    with pytest.raises(ArtifactError) as caught:
        Artifact.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}"])
def test_json_that_python_cannot_hold_is_damage(tmp_path: Path, text: str) -> None:
    path = published(tmp_path / "a").path
    (path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.read(path)


def forge(path: Path, **changes: Any) -> None:
    """Change a manifest and give it the digest that fits, as only somebody on purpose would."""
    manifest = {**json.loads((path / MANIFEST).read_text()), **changes}
    kept = {name: value for name, value in manifest.items() if name != "digest"}
    write_json(path / MANIFEST, {**manifest, "digest": digest_of(kept)})


def test_the_bytes_that_were_approved_are_the_bytes_that_are_read(tmp_path: Path) -> None:
    published(tmp_path / "a", rows=1)
    other = (published(tmp_path / "b", rows=2).path / MANIFEST).read_bytes()
    approved: list[bytes] = []

    def approve_and_swap(manifest: bytes) -> None:
        approved.append(manifest)
        (tmp_path / "a" / MANIFEST).write_bytes(other)

    artifact = Artifact.read(tmp_path / "a", approve=approve_and_swap)
    assert artifact.content["rows"] == 1
    assert json.loads(approved[0]) == artifact.manifest
    assert artifact.fingerprint == hashlib.sha256(approved[0]).hexdigest()

    def refuse(manifest: bytes) -> None:
        raise ArtifactError(f"{len(manifest)} bytes that nobody knows")

    with pytest.raises(ArtifactError, match="nobody knows"):
        Artifact.read(tmp_path / "a", approve=refuse)


@pytest.mark.parametrize("how", ["written", "replaced", "removed", "moved"])
def test_a_file_that_changes_after_it_was_verified_is_told(tmp_path: Path, how: str) -> None:
    artifact = Artifact.read(published(tmp_path / "a").path, verify=True)
    artifact.check_unchanged()
    file = artifact.path / "part" / "rows.bin"
    before = file.stat()
    if how == "written":
        file.write_bytes(b"swor")
    elif how == "replaced":
        (tmp_path / "other").write_bytes(b"swor")
        (tmp_path / "other").replace(file)
    elif how == "removed":
        file.unlink()
    else:
        artifact.path.rename(tmp_path / "b")
    if how in ("written", "replaced"):  # no trace in size and time
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="changed while it was being read"):
        artifact.check_unchanged()


def test_half_a_character_in_a_manifest_is_damage(tmp_path: Path) -> None:
    path = published(tmp_path / "a", name="x").path / MANIFEST
    path.write_text(path.read_text().replace('"x"', r'"\ud800"'))
    with pytest.raises(ArtifactError, match="its digest does not match"):
        Artifact.read(tmp_path / "a")
