"""Which bundles of a store may go, and removing them so that nobody sees a part of one.

The champion and what a rollback would go back to never go. A bundle is renamed out of sight before its files
are removed; a server that holds one has it in memory. Folders that a killed writer left behind are hidden,
carry a random name, and are removed when nothing in them has changed for an hour. Vectors that all these kept
in Milvus go too, unless a bundle that stays names the same collection or another store claims it
(`serving.milvus_claims`); they go before the files that name them, so that the next prune ends a killed one.
"""

import logging
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from features.directories import remove
from features.errors import BundleError, TwotowerError
from serving.milvus_claims import release
from serving.milvus_collection import FILE, Collection
from serving.store import Store, earlier_champions

ABANDONED_SECONDS = 3_600.0
"""A writer touches its hidden folder more often than this; one that was quiet for longer is dead."""

_FOLDERS = ("bundles", "lake", "examples", "checkpoints", "evaluations")
_HIDDEN = re.compile(r"\..*[0-9a-f]{32}")
_DAY = 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """What `prune` removed, or would remove.

    Attributes:
        removed: Bundle ids, oldest first.
        kept: Every other bundle id with why it stays, oldest first.
        abandoned: Hidden leftovers, relative to the store.
        freed: Bytes.
        collections: Collections of Milvus that held the vectors of removed bundles only.
        left: Further ones that are still there though no other store is known to use them, and why.
        shared: Further ones that are still there because another store claims them.
    """

    removed: list[str]
    kept: dict[str, str]
    abandoned: list[str]
    freed: int
    collections: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)


def prune(store: Store, keep: int, keep_days: float = 0.0, *, dry_run: bool = False) -> Pruned:
    """Remove old bundles and abandoned leftovers.

    Args:
        store: Its history keeps the ids of removed bundles.
        keep: How many of the newest bundles stay, besides the champion and what a rollback goes back to.
        keep_days: Bundles that were made in so many last days stay too.
        dry_run: Whether to say only what would go.

    Raises:
        ArtifactError: If the pointer cannot be read: then nothing is known to be safe to remove.
    """
    with store.locked():
        kept = _kept(store, keep, keep_days)
        removed = [bundle_id for bundle_id in store.bundle_ids() if bundle_id not in kept]
        leftovers = abandoned(store)
        going = [*(store.bundle_path(bundle_id) for bundle_id in removed), *leftovers]
        freed = sum(map(_bytes, going))
        unnamed = _collections(going, (store.bundle_path(bundle_id) for bundle_id in kept))
        if not dry_run:
            going = [_out_of_sight(path) for path in going]
    names = [path.relative_to(store.root).as_posix() for path in leftovers]
    done = Pruned(removed, kept, names, freed, [stored.collection for stored in unnamed])
    if dry_run:
        return done
    ended = _release(unnamed, store.bundles)
    for path in going:
        remove(path)
    return replace(done, **ended)


def abandoned(store: Store) -> list[Path]:
    """Return the hidden leftovers of killed writers, those that are surely abandoned."""
    folders = [store.root, *(store.root / name for name in _FOLDERS)]
    return [path for folder in folders for path in abandoned_in(folder)]


def abandoned_in(folder: Path) -> list[Path]:
    """Return the hidden leftovers in one folder in which nothing has changed for an hour."""
    if not folder.is_dir():
        return []
    hidden = [path for path in sorted(folder.iterdir()) if _HIDDEN.fullmatch(path.name)]
    return [path for path in hidden if time.time() - _last_change(path) > ABANDONED_SECONDS]


def _collections(going: Iterable[Path], staying: Iterable[Path]) -> list[Collection]:
    """Return the collections that what is removed names and no bundle that stays does."""
    kept = {stored.collection for stored in map(_named, staying) if stored is not None}
    found = {stored.collection: stored for stored in map(_named, going) if stored is not None}
    return [stored for name, stored in found.items() if name not in kept]


def _named(bundle: Path) -> Collection | None:
    """Return the collection that a bundle, or what was to become one, names; most have none."""
    try:
        return Collection.read(bundle / "index" / FILE)
    except BundleError:  # a damaged one cannot be opened either
        return None


class _Ended(TypedDict):
    """What became of collections."""

    collections: list[str]
    left: dict[str, str]
    shared: list[str]


def _release(collections: Iterable[Collection], bundles: Path) -> _Ended:
    """Take this store's claims off collections, and delete those that no other store claims."""
    ended = _Ended(collections=[], left={}, shared=[])
    for stored in collections:
        name = stored.collection
        try:
            state = release(stored, bundles)
        except TwotowerError as error:
            ended["left"][name] = str(error)
            log.warning("collection %s stays in Milvus, drop it there: %s", name, error)
            continue
        if state == "dropped":
            ended["collections"].append(name)
        elif state == "shared":
            ended["shared"].append(name)
            log.warning("collection %s stays in Milvus, since another store claims it", name)
        else:
            ended["left"][name] = "no store has claimed it, so that another one may use it"
            log.warning(
                "collection %s stays in Milvus: no store has claimed it; drop it if none uses it", name
            )
    return ended


def _kept(store: Store, keep: int, keep_days: float) -> dict[str, str]:
    """Return the bundles that stay and why, oldest first."""
    bundle_ids = store.bundle_ids()
    history = store.history()
    why: dict[str, str] = {}
    if history:
        why[history[-1].bundle_id] = "champion"
    target = next((earlier for earlier in earlier_champions(history) if _is_whole(store, earlier)), None)
    if target is not None:
        why[target] = "what a rollback goes back to"
    others = [bundle_id for bundle_id in bundle_ids if bundle_id not in why]
    sound = [bundle_id for bundle_id in others if _is_whole(store, bundle_id, verify=False)]
    if keep > len(sound):
        first = 0
    elif keep:  # what is older than all that count goes, damaged or not
        first = others.index(sound[-keep])
    else:
        first = len(others)
    for bundle_id in others[first:]:
        counted = bundle_id in sound
        why[bundle_id] = f"one of the newest {keep}" if counted else f"damaged, beside the newest {keep}"
    for bundle_id in others:
        if time.time() - store.made_at(bundle_id) < keep_days * _DAY:
            why.setdefault(bundle_id, f"made in the last {keep_days:g} days")
    return {bundle_id: why[bundle_id] for bundle_id in bundle_ids if bundle_id in why}


def _is_whole(store: Store, bundle_id: str, *, verify: bool = True) -> bool:
    """Return whether a rollback would take it: it, too, compares every byte where it is to verify."""
    try:
        store.bundle(bundle_id, verify=verify)
    except BundleError:
        return False
    return True


def _out_of_sight(path: Path) -> Path:
    hidden = path.with_name(f".pruned-{uuid.uuid4().hex}")
    try:
        return path.rename(hidden)
    except FileNotFoundError:  # its writer was alive after all, and is done
        return hidden


def _last_change(path: Path) -> float:
    return max([_changed(path), *(_changed(entry) for entry in path.rglob("*"))])


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # it went meanwhile, so somebody is at work
        return time.time()


def _bytes(path: Path) -> int:
    files = [path, *path.rglob("*")]
    return sum(entry.lstat().st_size for entry in files if entry.is_file() and not entry.is_symlink())
