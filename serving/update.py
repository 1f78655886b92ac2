"""A new version of a bundle with documents added, replaced or deleted; nothing is trained.

Only changed documents are encoded, by the bundle's own document tower. The index keeps the row of a document
that is gone as a tombstone (null in `ids.json`), new vectors are appended, and `documents.parquet` lists the
documents in the index's order. Past a share of tombstones, or below the ANN recall that the bundle was built
for, the index is built again by its factory. Bundles never change: the new one names its parent.

Shapes: N documents, D embedding.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from features.artifact import Artifact, write_json
from features.config import Config
from features.errors import BundleError, SchemaError
from serving import canary
from serving.build import IndexConfig
from serving.bundle import ID_LENGTH, open_bundle
from serving.choose import Choice, choose
from serving.devices import describe_faiss
from serving.encode import Progress, encode_documents, encode_queries
from serving.export import publish_bundle
from serving.index import Index
from serving.provenance import HeldOut, describe_versions
from serving.signing import SignConfig, TrustedKey
from serving.subsets import Rows
from serving.tune import ann_recall
from serving.vectors import Vectors, check_similarity
from towers.two_tower import TwoTower

_STAND_INS = 200


class UpdateConfig(Config):
    """When an updated index is built again."""

    rebuild_share: float = Field(
        0.2, ge=0, le=1, description="share of tombstones in the index beyond which it is built again"
    )


@dataclass(frozen=True)
class Changes:
    """What to change in a bundle.

    Attributes:
        documents: Rows to add, or to put in the place of those of the same id; the columns of
            `documents.parquet` (`features.changes`). None: none.
        deleted: Ids to delete.
    """

    documents: pa.Table | None = None
    deleted: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A new catalogue, in the order of the index that it makes, and how it comes about.

    Attributes:
        documents: The catalogue.
        changed: Its last rows: those that are encoded.
        dead: Catalogue rows of the parent that become tombstones.
        counts: `added`, `updated`, `deleted`.
    """

    documents: pa.Table
    changed: pa.Table
    dead: Rows
    counts: dict[str, int]


def update(
    bundle: Path,
    bundles: Path,
    changes: Changes,
    config: UpdateConfig,
    held_out: HeldOut | None = None,
    *,
    trusted_keys: tuple[TrustedKey, ...] = (),
    sign: SignConfig | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Publish a bundle with the changes, as `export` does: opened once, then made visible by one rename.

    Args:
        bundle: The parent: a published bundle, which stays as it is.
        bundles: Folder that receives `<bundle id>/`.
        changes: At least one.
        config: When the index is built again.
        held_out: Queries to tune and to measure ANN recall on; None: the parent's canaries and titles.
        trusted_keys: As `serving.bundle.load` has them, for the parent: whoever signs the new bundle vouches
            for what it takes from there.
        sign: With which key the new bundle is signed; None leaves it unsigned.
        progress: Called as documents are encoded.

    Raises:
        BundleError: If the parent is refused, its vectors are elsewhere, or a vector is not finite.
        SchemaError: If a change cannot be made, or no document would be left. Nothing is published then.
    """
    opened = open_bundle(bundle, "cpu", trusted_keys)
    parent, towers, index = opened.artifact, opened.towers, opened.index
    if not isinstance(index, Index):
        raise BundleError(f"bundle {bundle.name} has its vectors in another service; export it again")
    plan = plan_changes(pq.read_table(bundle / "documents.parquet"), changes)
    document_ND = _apply(index, plan, towers, progress)
    documents = plan.documents.to_pandas()
    doc_ids = documents["doc_id"].tolist()
    held_out = held_out or _stand_in(parent, documents)
    described, index, choice = _described(parent, index, towers, document_ND, held_out, config)
    canaries = _asked_before(parent)
    served = canary.served(canaries, opened.query_encoder, index)
    query_CD = encode_queries(towers, canaries)
    lineage = _lineage(parent) | plan.counts
    content = {
        **parent.content,
        "documents": len(doc_ids),
        "index": described,
        "versions": describe_versions(),
        "faiss": describe_faiss(),
        "canaries": canary.record(canaries, query_CD, document_ND, served, doc_ids),
        "update": {**lineage, "tombstones": index.tombstones, "rebuilt": choice is not None},
    }
    content["measured"] = dict(parent.content.get("measured", {}))
    content["measured"].pop("index_curve", None)  # of an index that this is not
    if choice is not None and choice.curve is not None:
        content["measured"]["index_curve"] = choice.curve.as_json()

    def write(directory: Path) -> None:
        _copy_towers(parent, directory)
        (directory / "index").mkdir()
        index.write(directory / "index" / index.file)
        if choice is not None and choice.curve is not None:
            choice.curve.write(directory / "index")
        write_json(directory / "ids.json", row_ids(index, doc_ids))
        pq.write_table(plan.documents, directory / "documents.parquet", compression="zstd")
        parent.check_unchanged()  # what was read and copied is what was verified

    return publish_bundle(bundles, content, write, sign)


def row_ids(index: Index, doc_ids: Sequence[str]) -> list[str | None]:
    """Return the id of every row of an index, None for a tombstone."""
    if index.alive is None:
        return list(doc_ids)
    ids = iter(doc_ids)
    return [next(ids) if alive else None for alive in index.alive]


def plan_changes(catalogue: pa.Table, changes: Changes) -> Plan:
    """Check changes against a catalogue and apply them to it.

    Args:
        catalogue: Documents by unique `doc_id`; other columns are passed through.
        changes: What to change; its documents have the catalogue's columns.

    Raises:
        SchemaError: If there is no change, a document is changed twice, one that does not exist is to be
            deleted, or none would be left.
    """
    schema = catalogue.schema.remove_metadata()
    changed = schema.empty_table() if changes.documents is None else changes.documents
    schema = pa.unify_schemas([schema, changed.schema.remove_metadata()])  # a column may have had nulls only
    catalogue, changed = catalogue.cast(schema), changed.select(schema.names).cast(schema)
    rows = {doc_id: row for row, doc_id in enumerate(catalogue["doc_id"].to_pylist())}
    upserted, deleted = changed["doc_id"].to_pylist(), list(changes.deleted)
    if not upserted and not deleted:
        raise SchemaError("there is nothing to change; give documents, or ids to delete")
    _refuse("is given twice; give each document once", _repeated(upserted) or _repeated(deleted))
    _refuse("is both given and deleted; do one of the two", sorted(set(upserted) & set(deleted)))
    _refuse("is to be deleted, but the bundle has no such document", [d for d in deleted if d not in rows])
    replaced = [rows[doc_id] for doc_id in upserted if doc_id in rows]
    dead = np.array(sorted([*replaced, *(rows[doc_id] for doc_id in deleted)]), dtype=np.int64)
    if len(rows) - len(dead) + len(upserted) == 0:
        raise SchemaError("no document would be left; a bundle needs at least one")
    kept = np.ones(len(rows), dtype=bool)
    kept[dead] = False
    counts = {"added": len(upserted) - len(replaced), "updated": len(replaced), "deleted": len(deleted)}
    return Plan(pa.concat_tables([catalogue.filter(pa.array(kept)), changed]), changed, dead, counts)


def _apply(index: Index, plan: Plan, towers: TwoTower, progress: Progress | None) -> Vectors:
    """Change the index, and return (N, D) vectors of the new catalogue as they were encoded."""
    changed_ND = encode_documents(towers, plan.changed.to_pandas(), progress=progress)
    check_similarity(changed_ND, towers.similarity)
    index.replace(plan.dead, changed_ND)
    if index.is_lossless:
        return index.vectors(np.arange(index.size))
    return encode_documents(towers, plan.documents.to_pandas(), progress=progress)


def _described(
    parent: Artifact,
    index: Index,
    towers: TwoTower,
    document_ND: Vectors,
    held_out: HeldOut,
    config: UpdateConfig,
) -> tuple[dict[str, Any], Index, Choice | None]:
    """Measure the index and build it again where it must be; return what the manifest says of it, and it."""
    before = parent.content["index"]
    k, target = before["ann_recall"]["k"], before["ann_recall"]["target"]
    met, parameters, choice = before["ann_recall"]["target_met_when_tuned"], before["search"], None
    measuring_BD = encode_queries(towers, held_out.measuring)
    index.set_parameters(parameters)
    recall = ann_recall(index, measuring_BD, document_ND, k)
    share = index.tombstones / (index.size + index.tombstones)
    if share > config.rebuild_share or (target is not None and recall < target):
        wanted = IndexConfig(
            factory=before["factory"],
            target_recall=target,
            k=k,
            search={} if target else parameters,
            device="cpu",
        )
        choice = choose(document_ND, encode_queries(towers, held_out.tuning), wanted, towers.similarity)
        index, met, parameters = _on_host(choice), choice.met, choice.parameters
        recall = ann_recall(index, measuring_BD, document_ND, k)
    described = {
        **before,
        "search": dict(parameters),
        "built_on": index.note,
        "bytes": index.stored_bytes,
        "ann_recall": {
            "k": min(k, index.size),
            "value": recall,
            "queries": len(held_out.measuring),
            "split": held_out.measuring_split,
            "target": target,
            "target_met_when_tuned": met,
        },
    }
    if choice is not None:
        described["note"] = choice.note
    return described, index, choice


def _on_host(choice: Choice) -> Index:
    if not isinstance(choice.index, Index):
        raise TypeError(f"a {type(choice.index).__name__} was built where a faiss index was asked for")
    return choice.index


def _lineage(parent: Artifact) -> dict[str, Any]:
    parent_id = parent.digest[:ID_LENGTH]
    return {"parent": parent_id, "exported": parent.content.get("update", {}).get("exported", parent_id)}


def _stand_in(parent: Artifact, documents: pd.DataFrame) -> HeldOut:
    """Return queries for a bundle whose own are gone: titles, or histories of one document, and canaries."""
    titled = canary.spread(documents[documents["title"].str.strip() != ""], _STAND_INS)
    asks_text = "text" in parent.content["query_inputs"]
    made = [
        canary.query_frame(title, []) if asks_text else canary.query_frame(None, [doc_id])
        for doc_id, title in zip(titled["doc_id"], titled["title"], strict=True)
    ]
    queries = pd.concat([_asked_before(parent), *made], ignore_index=True)
    return HeldOut(queries, queries, "titles")


def _asked_before(parent: Artifact) -> pd.DataFrame:
    """Return the parent's canary queries."""
    asked = [canary.query_frame(**one["query"]) for one in parent.content["canaries"]]
    return pd.concat(asked, ignore_index=True)


def _repeated(doc_ids: Sequence[str]) -> list[str]:
    return [doc_id for doc_id, count in Counter(doc_ids).items() if count > 1]


def _refuse(what: str, doc_ids: Sequence[str]) -> None:
    if doc_ids:
        more = f" ({len(doc_ids)} such documents)" if len(doc_ids) > 1 else ""
        raise SchemaError(f"{doc_ids[0][:60]!r} {what}{more}")


def _copy_towers(parent: Artifact, directory: Path) -> None:
    for name in parent.manifest["files"]:
        if name.startswith("index/") or name in ("ids.json", "documents.parquet"):
            continue
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(parent.path / name, directory / name)
