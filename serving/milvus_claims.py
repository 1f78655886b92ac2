"""Which stores use a collection of Milvus, so that none drops what another one serves.

A collection is named by what it holds, so stores that export equal vectors share one, and so does a copy of a
store. Each store claims the collections of the bundles that are opened from it by an alias of its own,
`<collection>_of_<store>`. Milvus makes and drops an alias by one call, so claims need no lock, and since
2.5.5 it drops no collection that has any, so that a claim between the last look and the drop is safe.

A store's identity is a file in its folder of bundles, which records its own inode: a copy of it has another
inode and makes itself a new identity.
"""

import fcntl
import json
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Any, Literal

from features.errors import ConfigError
from serving.milvus_collection import Collection, connect, failures, reason, refusing

IDENTITY = ".milvus-store.json"
"""In a folder of bundles of which some are in Milvus."""

_STORE = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)


def claim(client: Any, collection: str, bundles: Path) -> None:
    """Say that bundles in a folder use a collection; one that is claimed already stays so.

    Where that is not allowed, by Milvus or by the file system, a warning says that another store may drop it.

    Args:
        client: A `pymilvus.MilvusClient`.
        collection: Which one.
        bundles: The folder of bundles.
    """
    refused: tuple[type[Exception], ...] = (*failures(), OSError)
    try:
        _claim(client, collection, _alias(collection, _identity(bundles)))
    except refused as error:
        log.warning(
            "collection %s is not claimed for %s, so that another store may drop it: %s",
            collection,
            bundles,
            reason(error),
        )


def _claim(client: Any, collection: str, alias: str) -> None:
    if alias in claims(client, collection):
        return
    try:
        client.create_alias(collection, alias)
    except failures():  # another process of this store may have been faster
        if alias not in claims(client, collection):
            raise


def release(stored: Collection, bundles: Path) -> Literal["dropped", "shared", "unclaimed"]:
    """Take a store's claim off a collection, and delete the collection if that was the last one.

    Args:
        stored: Named by no bundle of the store any more.
        bundles: The store's folder of bundles.

    Returns:
        `dropped` also where it was gone already; `shared` where another store claims it; `unclaimed` where no
        store ever said that it uses it, so that nothing is known.

    Raises:
        ConfigError: If pymilvus is not installed, or Milvus cannot be reached or does not allow it.
    """
    client = connect(stored.address)
    try:
        with refusing(stored.address):
            if not client.has_collection(stored.collection):
                return "dropped"
            found = claims(client, stored.collection)
            own = _alias(stored.collection, _identity(bundles))
            if own not in found:
                return "shared" if found else "unclaimed"
            client.drop_alias(own)
            if len(found) > 1:
                return "shared"
            return _drop(client, stored.collection)
    except OSError as error:
        raise ConfigError(f"{bundles / IDENTITY}: {error.strerror}; make it writable") from None
    finally:
        client.close()


def claims(client: Any, collection: str) -> list[str]:
    """Return the aliases of a collection; one that somebody else made counts as a claim, too."""
    return [str(alias) for alias in client.list_aliases(collection)["aliases"]]


def _drop(client: Any, collection: str) -> Literal["dropped", "shared"]:
    try:
        client.drop_collection(collection)
    except failures():
        if claims(client, collection):  # another store opened a bundle with it meanwhile
            return "shared"
        raise
    return "dropped"


def _alias(collection: str, store: str) -> str:
    return f"{collection}_of_{store}"


def _identity(bundles: Path) -> str:
    """Return who a folder of bundles is, and make it an identity where it has none or that of another one.

    Raises:
        OSError: If it has none and cannot be given one.
    """
    known = _read_identity(bundles)
    if known is not None:
        return known
    with (bundles / f"{IDENTITY}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _read_identity(bundles) or _make_identity(bundles)


def _read_identity(bundles: Path) -> str | None:
    try:
        with (bundles / IDENTITY).open(encoding="utf-8") as file:
            told = json.load(file)
            if told["inode"] == os.fstat(file.fileno()).st_ino and _STORE.fullmatch(told["store"]):
                return str(told["store"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None


def _make_identity(bundles: Path) -> str:
    store, staging = uuid.uuid4().hex, bundles / f"{IDENTITY}.{uuid.uuid4().hex}"
    with staging.open("w", encoding="utf-8") as file:
        json.dump({"store": store, "inode": os.fstat(file.fileno()).st_ino}, file)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(bundles / IDENTITY)
    return store
