"""What a user names: a store, a bundle of it; and the command that makes what a run made the champion."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, BundleError
from pipelines.workspace import Workspace
from serving.store import Store


def open_store(folder: Path) -> Store:
    """Return the store in a folder.

    Raises:
        ArtifactError: If there is no such folder.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the `store` of a configuration that was run")
    return Store(folder)


def published(store: Store, bundle_id: str) -> str:
    """Return the id of a bundle that a user named, once it is sure that the store has it.

    Raises:
        BundleError: If the store has no bundle of this name; the message says what lists them.
    """
    try:
        path = store.bundle_path(bundle_id)
    except BundleError as error:
        raise BundleError(f"{error}; {_listing(store)}") from None
    if not path.exists():
        raise BundleError(f"{store.root} has no bundle {bundle_id}; {_listing(store)}")
    return bundle_id


def no_champion(store: Store) -> str:
    """Say that a store has no champion, and what of it can be asked or promoted all the same."""
    bundles = store.bundle_ids()
    if not bundles:
        return f"{store.root} has no champion; `twotower run CONFIG` makes and promotes a bundle"
    newest = bundles[-1]
    only = "its only bundle" if len(bundles) == 1 else f"the newest of its {len(bundles)} bundles"
    runs = [run for run in Workspace(store.root).records("runs") if _made(run) == newest]
    command = force_command(runs[-1] if runs else {})
    return (
        f"{store.root} has no champion, nothing was promoted yet; name {only} (--bundle {newest}), "
        f"or make it the champion with `{command}`"
    )


def force_command(run: Mapping[str, Any]) -> str:
    """Return the command that promotes what a run made, whatever was objected.

    Args:
        run: The summary of a run; one that does not say its configuration gives the word CONFIG.
    """
    changes = [word for change in run.get("overrides", ()) for word in ("--set", change)]
    return shlex.join(["twotower", "promote", run.get("config", "CONFIG"), *changes, "--force"])


def _made(run: Mapping[str, Any]) -> str:
    """Return the bundle that a run made, or nothing."""
    paths = [stage["path"] for stage in run.get("stages", ()) if stage["stage"] == "export"]
    return Path(paths[0]).name if paths else ""


def _listing(store: Store) -> str:
    has_any = bool(store.bundle_ids())
    return f"`twotower bundles {store.root}` lists its bundles" if has_any else "it has none yet"
