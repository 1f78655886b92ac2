"""The folder of bundles, and the pointer that says which one is served.

`champion.json` is replaced by one rename and carries its own history, newest last. A reader sees the old
pointer or the new one. Two writers take turns by a lock file.
"""

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from features.artifact import MANIFEST, Artifact, write_json
from features.errors import ArtifactError, BundleError
from serving import signing
from serving.signing import TrustedKey

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
        rolled_back_from: The champion that this one took the place of by a rollback; None for a promotion.
    """

    bundle_id: str
    reason: str
    promoted_at: str
    rolled_back_from: str | None = None


class Store:
    """Bundles and the champion under one folder.

    Args:
        root: The folder; need not exist until something is written.
        trusted_keys: Public keys, one of which must have signed what is served from here; none asks for no
            signature.
    """

    def __init__(self, root: Path, trusted_keys: tuple[TrustedKey, ...] = ()) -> None:
        self.root = root
        self.trusted_keys = trusted_keys

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

    def bundle(self, bundle_id: str, *, verify: bool = False) -> Artifact:
        """Return what a bundle's manifest says.

        Args:
            bundle_id: Which one.
            verify: Whether every file must match its SHA-256; a size check alone is always made.

        Raises:
            BundleError: If it is not in the store, not whole, or no trusted key signed it.
        """
        path = self.bundle_path(bundle_id)
        if not path.is_dir():
            raise BundleError(
                f"{self.root} has no bundle {bundle_id}; the folders in {self.bundles} are its bundles"
            )
        try:
            approve = partial(signing.check, path, self.trusted_keys)
            artifact = Artifact.read(path, "bundle", verify=verify, approve=approve)
        except BundleError:
            raise
        except ArtifactError as error:
            raise BundleError(f"bundle {bundle_id}: {error}") from None
        held = artifact.digest[: len(bundle_id)]
        if held != bundle_id:
            raise BundleError(f"{path} holds bundle {held}; its directory must carry its id")
        return artifact

    def has(self, bundle_id: str) -> bool:
        """Return whether a bundle, whole or damaged, is in the store."""
        return bool(_BUNDLE_ID.fullmatch(bundle_id)) and self.bundle_path(bundle_id).is_dir()

    def bundle_ids(self) -> list[str]:
        """Return the ids of all published bundles, oldest first; damaged ones are among them."""
        if not self.bundles.is_dir():
            return []
        found = []
        for entry in self.bundles.iterdir():
            if _BUNDLE_ID.fullmatch(entry.name) and entry.is_dir():
                with suppress(FileNotFoundError):  # pruned meanwhile
                    found.append((self.made_at(entry.name), entry.name))
        return [name for _, name in sorted(found)]

    def made_at(self, bundle_id: str) -> float:
        """Return when a bundle was made, in seconds since 1970; where it does not say, when it came here.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = self.bundle_path(bundle_id)
        manifest = path / MANIFEST
        if not manifest.is_file():
            return path.stat().st_mtime
        try:
            return made_at(json.loads(manifest.read_bytes())["content"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return manifest.stat().st_mtime

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
                _check_entry(entry)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise ArtifactError(
                f"{self.root} is no folder; give the `store` of a configuration that was run"
            ) from None
        except OSError as error:
            raise ArtifactError(f"{self.pointer} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError, BundleError) as error:
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
        with self.locked():
            self.bundle(bundle_id)
            history = self.history()
            if history and history[-1].bundle_id == bundle_id:
                return history[-1]
            return self._append(history, Champion(bundle_id, reason, _now()))

    def roll_back(self, to: str | None = None, reason: str = "") -> tuple[Champion, dict[str, str]]:
        """Make an earlier champion the champion again; servers that follow the store swap to it.

        Args:
            to: Which one; None takes the latest of `earlier_champions` that is whole, every byte of it.
            reason: Kept in the history.

        Returns:
            The new champion, and those that were passed over with what is wrong with each.

        Raises:
            BundleError: If there is none to go back to, or `to` never was the champion or is not whole.
            ArtifactError: If the present pointer cannot be read.
        """
        with self.locked():
            history = self.history()
            if not history:
                raise BundleError(f"{self.root} has no champion to roll back from; run or promote one")
            present = history[-1].bundle_id
            earlier = earlier_champions(history)
            if to is not None and to not in {entry.bundle_id for entry in history} - {present}:
                state = "is the champion already" if to == present else "never was the champion"
                raise BundleError(
                    f"bundle {to} {state}; earlier champions are {', '.join(earlier) or 'none'}"
                )
            passed_over: dict[str, str] = {}
            for bundle_id in earlier if to is None else [to]:
                try:
                    self.bundle(bundle_id, verify=True)
                except BundleError as error:
                    passed_over[bundle_id] = str(error)
                    continue
                said = reason or f"rolled back from {present}"
                champion = Champion(bundle_id, said, _now(), rolled_back_from=present)
                return self._append(history, champion), passed_over
        others = sorted({entry.bundle_id for entry in history} - {present})
        only = f"{present} is the only one there ever was"
        left = f"every other one was rolled back from; name one to take it all the same: {', '.join(others)}"
        tried = "; ".join(passed_over.values()) or (left if others else only)
        raise BundleError(f"{self.root} has no earlier champion to go back to: {tried}")

    def _append(self, history: list[Champion], champion: Champion) -> Champion:
        entries = [asdict(entry) for entry in (*history, champion)]
        write_json(self.pointer, {"format": _FORMAT, "bundle_id": champion.bundle_id, "history": entries})
        return champion

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers of the pointer out while the block runs; readers never wait."""
        if not self.root.is_dir():
            raise ArtifactError(f"{self.root} is no folder; give the `store` of a configuration that was run")
        with (self.root / f".{POINTER}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def made_at(content: Mapping[str, Any]) -> float:
    """Return when a bundle was made, in seconds since 1970, from its manifest's `content`.

    Raises:
        KeyError: If the manifest does not say.
        ValueError: If what it says is no moment of ISO 8601 with its zone.
        TypeError: Likewise.
    """
    moment = datetime.fromisoformat(content["created_at"])
    if moment.tzinfo is None:
        raise ValueError(f"{content['created_at']} has no zone")
    return moment.timestamp()


def earlier_champions(history: list[Champion]) -> list[str]:
    """Return what a rollback may go back to, the latest first.

    A rollback takes what it rolled back from off the list, so that a second one leads further back and not
    forth again.
    """
    line: list[str] = []
    for entry in history:
        if entry.rolled_back_from is not None and entry.bundle_id in line:
            del line[len(line) - line[::-1].index(entry.bundle_id) :]
        else:
            line.append(entry.bundle_id)
    return [bundle_id for bundle_id in dict.fromkeys(reversed(line)) if bundle_id != line[-1]]


def rolled_back(history: list[Champion]) -> set[str]:
    """Return the bundles that a rollback left and that were not made the champion since."""
    left: set[str] = set()
    for entry in history:
        left.discard(entry.bundle_id)
        if entry.rolled_back_from is not None:
            left.add(entry.rolled_back_from)
    return left


def _check_entry(entry: Champion) -> None:
    for bundle_id in (entry.bundle_id, entry.rolled_back_from):
        if bundle_id is not None and not _BUNDLE_ID.fullmatch(bundle_id):
            raise ValueError(f"{bundle_id!r} is not a bundle id")
    if not isinstance(entry.reason, str) or not isinstance(entry.promoted_at, str):
        raise TypeError("a reason and a time are strings")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
