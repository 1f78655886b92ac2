"""Directories of results that are either whole or absent.

A stage writes into a hidden staging directory beside its target; `publish` records the size and
SHA-256 of every file in `manifest.json`, flushes everything to disk and makes the directory visible by
one rename. A reader therefore never meets a half-written artifact. What is in the directory and not in the
manifest, such as a file added later or a link that leads out of it, makes the artifact refused.

The **digest** of an artifact is the SHA-256 of its manifest without the fields that may differ between
two identical computations (`created_at`, `seconds`, `measured`) and without files of timings, so equal inputs
and seeds give equal digests.
"""

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Self

from features.directories import replace_directory, sync_directory, sync_tree
from features.errors import ArtifactError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""A signature of the manifest, the one file beside it that the manifest does not list."""

SCHEMA_VERSION = 1
_VOLATILE = ("created_at", "seconds", "measured", "digest")


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part of it."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    sync_directory(path.parent)


class Artifact:
    """A published directory and what its manifest says of it.

    Args:
        path: The directory.
        manifest: What was read of its manifest.
        fingerprint: SHA-256 of the manifest's bytes, from which `manifest` was parsed.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], fingerprint: str) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = fingerprint
        self._seen: dict[str, tuple[int, ...]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the content."""
        return str(self.manifest["digest"])

    @property
    def kind(self) -> str:
        """What the directory holds, such as `examples` or `bundle`."""
        return str(self.manifest["kind"])

    @property
    def content(self) -> Mapping[str, Any]:
        """What the stage that wrote the artifact recorded about it."""
        content: Mapping[str, Any] = self.manifest["content"]
        return content

    @classmethod
    def read(
        cls,
        path: Path,
        kind: str | None = None,
        *,
        verify: bool = False,
        approve: Callable[[bytes], None] | None = None,
    ) -> Self:
        """Open a published directory.

        Args:
            path: The artifact's directory.
            kind: What it must hold; `None` accepts any kind.
            verify: Whether to hash every file and compare; a size check alone is always made.
            approve: Called with the manifest's bytes before anything in them is believed, such as to check
                their signature; raises to refuse them. The bytes approved are the bytes parsed, since the
                file may change between two readings.

        Raises:
            ArtifactError: If it is absent, unfinished, damaged or of another kind.
        """
        text, seen = _manifest_bytes(path)
        if approve is not None:
            approve(text)
        manifest = _parse_manifest(path, text)
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {manifest['schema_version']}; this release reads {SCHEMA_VERSION}"
            )
        if kind is not None and manifest["kind"] != kind:
            raise ArtifactError(f"{path} holds a {manifest['kind']!r}, not a {kind!r}")
        if manifest["digest"] != _digest_or_none(manifest):
            raise ArtifactError(
                f"{path / MANIFEST} was changed after it was written; its digest does not match"
            )
        artifact = cls(path, manifest, hashlib.sha256(text).hexdigest())
        artifact._seen[MANIFEST] = seen
        artifact._check_files(hash_them=verify)
        return artifact

    def check_unchanged(self) -> None:
        """Assert that no file was written, replaced or moved since `read` looked at it.

        What verified a file and what then used it are two readings of it; called after the last use, this
        says that both read the same.

        Raises:
            ArtifactError: If one was.
        """
        try:
            now = {name: _identity((self.path / name).lstat()) for name in self._seen}
        except OSError:
            now = {}
        if now != self._seen:
            raise ArtifactError(f"{self.path} was changed while it was being read; start again")

    def _check_files(self, *, hash_them: bool) -> None:
        found = _files_below(self.path)
        for name, recorded in self.manifest["files"].items():
            status = found.pop(name, None)
            if status is None:
                raise ArtifactError(f"{self.path} lacks its file {name}")
            self._seen[name] = _identity(status)
            file = self.path / name
            if status.st_size != recorded["bytes"]:
                raise ArtifactError(
                    f"{file} has {status.st_size} bytes; its manifest says {recorded['bytes']}"
                )
            if hash_them and sha256_of_file(file) != recorded["sha256"]:
                raise ArtifactError(f"{file} does not match the SHA-256 in its manifest")
        for name in found:
            if name not in (MANIFEST, SIGNATURE):
                raise ArtifactError(f"{self.path} has a file {name} that its manifest does not list; move it")


def _manifest_bytes(path: Path) -> tuple[bytes, tuple[int, ...]]:
    try:
        with (path / MANIFEST).open("rb") as file:
            status = os.fstat(file.fileno())  # before reading: what changes from now on is told
            return file.read(), _identity(status)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{path} is not a finished artifact (no {MANIFEST}); run its stage again"
        ) from None
    except (IsADirectoryError, PermissionError) as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read: {error.strerror}") from None


def _parse_manifest(path: Path, text: bytes) -> dict[str, Any]:
    """Return a manifest that has every field, each of its type, and only names of files below it."""
    try:
        manifest = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of 5,000 digits
        raise ArtifactError(f"{path / MANIFEST} is damaged: {error}") from None
    if (
        not isinstance(manifest, dict)
        or not {
            "kind": str,
            "content": dict,
            "files": dict,
            "digest": str,
            "schema_version": int,
        }.items()
        <= {name: type(value) for name, value in manifest.items()}.items()
    ):
        raise ArtifactError(f"{path / MANIFEST} is not a manifest of twotower")
    for name, recorded in manifest["files"].items():
        parts = PurePosixPath(name).parts
        inside = name == "/".join(parts) and not {"..", ".", "/"} & {*parts} and "\0" not in name
        if not inside or name in (MANIFEST, SIGNATURE):
            raise ArtifactError(f"{path / MANIFEST} lists {name!r}, which names no file of an artifact")
        if not isinstance(recorded, dict) or [type(recorded.get(key)) for key in ("bytes", "sha256")] != [
            int,
            str,
        ]:
            raise ArtifactError(f"{path / MANIFEST} does not say size and SHA-256 of {name}")
    return manifest


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced; no writer can set the last of it back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _files_below(path: Path) -> dict[str, os.stat_result]:
    """Return the status of every file below a directory by its name there.

    Raises:
        ArtifactError: If anything but files and directories is there, such as a link.
    """
    found = {}
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder, name)
            status = entry.lstat()
            shown = entry.relative_to(path).as_posix()
            if stat.S_ISREG(status.st_mode):
                found[shown] = status
            elif not stat.S_ISDIR(status.st_mode):
                raise ArtifactError(f"{path} has {shown}, which is neither a file nor a folder; remove it")
    return found


@contextmanager
def publish(path: Path, kind: str, content: dict[str, Any], measured: Collection[str] = ()) -> Iterator[Path]:
    """Write an artifact: yields a staging directory, and publishes it by one rename on success.

    Args:
        path: The directory to create. One that is already there is replaced.
        kind: Recorded in the manifest and checked by `Artifact.read`.
        content: Recorded in the manifest; read when the block ends, so the block may still fill it.
            The keys `created_at`, `seconds` and `measured` do not enter the digest.
        measured: Names of files that hold timings; their hashes are recorded but do not enter the digest.

    Yields:
        The staging directory to write into. On an exception it is removed and nothing is published.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    staging.mkdir()
    try:
        yield staging
        files = {
            file.relative_to(staging).as_posix(): {
                "sha256": sha256_of_file(file),
                "bytes": file.stat().st_size,
                **({"measured": True} if file.relative_to(staging).as_posix() in measured else {}),
            }
            for file in sorted(staging.rglob("*"))
            if file.is_file()
        }
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "content": content,
            "files": files,
        }
        manifest["digest"] = _digest(manifest)
        write_json(staging / MANIFEST, manifest)
        sync_tree(staging)
        replace_directory(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest["content"].items() if key not in _VOLATILE}
    kept = {key: value for key, value in manifest.items() if key not in _VOLATILE}
    files = {name: file for name, file in manifest["files"].items() if not file.get("measured")}
    return digest_of({**kept, "content": content, "files": files})


def _digest_or_none(manifest: Mapping[str, Any]) -> str | None:
    """Return the digest, or None where what was read has none: half a character, or too deep a nesting."""
    try:
        return _digest(manifest)
    except (UnicodeEncodeError, RecursionError):
        return None
