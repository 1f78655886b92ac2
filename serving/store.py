"""The folder of bundles, and the pointer that says which one is served.

`champion.json` is replaced by one rename and carries its own history, newest last. A reader sees the old
pointer or the new one. Two writers take turns by a lock file.
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from features.artifact import Artifact, write_json
from features.errors import ArtifactError, BundleError

POINTER = "champion.json"
_BUNDLE_ID = re.compile(r"[0-9a-f]{16}")
_FORMAT = 1


@dataclass(frozen=True)
class Champion:
    """A bundle that was made the served one.

    Attributes:
        bundle_id: Its directory name under `bundles/`.
        reason: Why, in the words of whoever promoted it.
        promoted_at: When, ISO 8601 in UTC.
    """

    bundle_id: str
    reason: str
    promoted_at: str


class Store:
    """Bundles and the champion under one folder.

    Args:
        root: The folder; need not exist until something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def bundles(self) -> Path:
        """Where bundles are published."""
        return self.root / "bundles"

    @property
    def pointer(self) -> Path:
        """The file that names the champion."""
        return self.root / POINTER

    def bundle_path(self, bundle_id: str) -> Path:
        """Return the directory of a bundle, which may not exist.

        Raises:
            BundleError: If this cannot be a bundle id; ids never lead out of the store.
        """
        if not _BUNDLE_ID.fullmatch(bundle_id):
            raise BundleError(f"{bundle_id!r} is not a bundle id (16 hexadecimal digits)")
        return self.bundles / bundle_id

    def bundle(self, bundle_id: str) -> Artifact:
        """Return what a bundle's manifest says.

        Raises:
            BundleError: If it is not in the store or not whole.
        """
        path = self.bundle_path(bundle_id)
        if not path.exists():
            raise BundleError(
                f"{self.root} has no bundle {bundle_id}; the folders in {self.bundles} are its bundles"
            )
        try:
            return Artifact.read(path, "bundle")
        except BundleError:
            raise
        except ArtifactError as error:
            raise BundleError(f"bundle {bundle_id}: {error}") from None

    def bundle_ids(self) -> list[str]:
        """Return the ids of all published bundles, oldest first; damaged ones are among them."""
        if not self.bundles.is_dir():
            return []
        found = [entry for entry in self.bundles.iterdir() if _BUNDLE_ID.fullmatch(entry.name)]
        return [
            entry.name for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
        ]

    def champion(self) -> Champion | None:
        """Return the served bundle, or None where none was promoted yet.

        Raises:
            ArtifactError: If the pointer cannot be read.
        """
        history = self.history()
        return history[-1] if history else None

    def history(self) -> list[Champion]:
        """Return every promotion, oldest first; the last one is the champion.

        Raises:
            ArtifactError: If the pointer cannot be read.
        """
        try:
            recorded = json.loads(self.pointer.read_text(encoding="utf-8"))
            if recorded["format"] != _FORMAT:
                raise ArtifactError(
                    f"{self.pointer} has format {recorded['format']}; this release reads {_FORMAT}"
                )
            history = [Champion(**entry) for entry in recorded["history"]]
            if not history or recorded["bundle_id"] != history[-1].bundle_id:
                raise ValueError("its bundle_id is not the last of its history")
            for entry in history:
                self.bundle_path(entry.bundle_id)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise ArtifactError(
                f"{self.root} is no folder; give the `store` of a configuration that was run"
            ) from None
        except (ValueError, KeyError, TypeError, BundleError) as error:
            raise ArtifactError(
                f"{self.pointer} is damaged ({type(error).__name__}: {error}); "
                "delete it and promote a bundle again"
            ) from None
        return history

    def set_champion(self, bundle_id: str, reason: str) -> Champion:
        """Make a bundle the served one; servers that follow the store swap to it.

        The bundle that is the champion already stays so, with its first reason.

        Raises:
            BundleError: If the bundle is not in the store or not whole.
            ArtifactError: If the present pointer cannot be read.
        """
        self.bundle(bundle_id)
        with self._locked():
            history = self.history()
            if history and history[-1].bundle_id == bundle_id:
                return history[-1]
            champion = Champion(bundle_id, reason, datetime.now(UTC).isoformat(timespec="seconds"))
            entries = [asdict(entry) for entry in (*history, champion)]
            write_json(self.pointer, {"format": _FORMAT, "bundle_id": bundle_id, "history": entries})
        return champion

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / f".{POINTER}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
