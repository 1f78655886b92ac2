"""The store as the pipeline sees it: one folder a stage, keyed by what goes in; file digests; a lock.

The artifacts themselves are the cache. A stage's key is the digest of its name, its configuration, the
digests of its inputs, the schema version and the text normaliser's, so a finished directory of that key is
the work already done, wherever and whenever it ran, and no second record can disagree with it.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.artifact import SCHEMA_VERSION, Artifact, digest_of, sha256_of_file, write_json
from features.errors import ArtifactError, ConfigError, SchemaError, TwotowerError
from features.text import NORMALISER

STAGES = ("ingest", "examples", "train", "evaluate", "export", "promote")
_FOLDERS = {"ingest": "lake", "examples": "examples", "train": "checkpoints", "evaluate": "evaluations"}
_KINDS = {"ingest": "lake", "examples": "examples", "train": "checkpoint", "evaluate": "evaluation"}
_KEY_DIGITS = 16


class StoreInUseError(TwotowerError):
    """Another run is writing to the same store."""


@dataclass(frozen=True)
class StageResult:
    """What a stage hands to the next one: where its artifact is and what identifies it."""

    stage: str
    path: str
    digest: str
    cached: bool
    seconds: float
    summary: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary."""
        return dict(self.__dict__)


class Workspace:
    """Paths and keys below one store folder."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def create(self) -> None:
        """Create the store's folder unless it is there.

        Raises:
            ConfigError: If there can be no folder of this name.
        """
        try:
            self.store.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"store {self.store} cannot be a folder: {error.strerror}; give another `store`"
            ) from None

    def target(self, stage: str, key: str) -> Path:
        """Return the directory of a stage's artifact."""
        return self.store / _FOLDERS[stage] / key

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the finished artifact of a stage, or none; a damaged one counts as absent."""
        path = self.target(stage, key)
        if not path.is_dir():
            return None
        try:
            return Artifact.read(path, _KINDS[stage])
        except ArtifactError:
            return None

    @property
    def bundles(self) -> Path:
        """Folder of the bundles, one directory each, named by bundle id."""
        return self.store / "bundles"

    def read_record(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return a small JSON record of a kind (`exports`, `promotions`, `runs`), or none."""
        try:
            record = json.loads((self.store / kind / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(self, kind: str, key: str, record: Mapping[str, Any]) -> Path:
        """Write a small JSON record in one step and return its path."""
        path = self.store / kind / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(record))
        return path

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield every record of a kind, oldest first."""
        files = (self.store / kind).glob("*.json")
        for path in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            record = self.read_record(kind, path.stem)
            if record is not None:
                yield record

    def digests(self, files: Iterable[Path]) -> dict[str, str]:
        """Return the SHA-256 of input files by path, hashing only what changed since the last run.

        A file counts as unchanged while its path, size and modification time (ns) are.

        Raises:
            SchemaError: If a file is absent or unreadable.
            ConfigError: If the store cannot be a folder.
        """
        self.create()
        cache_path = self.store / "input-digests.json"
        try:
            cache: dict[str, Any] = json.loads(cache_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            cache = {}
        digests = {}
        for file in files:
            try:
                status = file.stat()
                stamp = [status.st_size, status.st_mtime_ns]
                known = cache.get(str(file), {})
                digest = known["sha256"] if known.get("stamp") == stamp else sha256_of_file(file)
            except OSError as error:
                problem = (
                    "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
                )
                raise SchemaError(
                    f"input file {file} {problem}; check `source` in the configuration"
                ) from None
            cache[str(file)] = {"stamp": stamp, "sha256": digest}
            digests[str(file)] = digest
        write_json(cache_path, cache)
        return digests

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the store while the block runs.

        Raises:
            StoreInUseError: If another process holds it.
            ConfigError: If the store cannot be a folder.
        """
        self.create()
        with (self.store / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "an unknown process"
                raise StoreInUseError(
                    f"{self.store} is in use by another run ({holder}); wait for it, "
                    "or give this run its own `store`"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def stage_key(stage: str, section: object, inputs: Mapping[str, str]) -> str:
    """Return the key of a stage's work: equal keys are equal work.

    Args:
        stage: Name of the stage.
        section: The stage's JSON-serialisable configuration.
        inputs: Digest of each input by its role.
    """
    versions = {"schema": SCHEMA_VERSION, "normaliser": NORMALISER}
    identity = {"stage": stage, "config": section, "inputs": dict(inputs), **versions}
    return digest_of(identity)[:_KEY_DIGITS]
