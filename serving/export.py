"""Making a bundle: encode the catalogue, build and tune the index, publish both with the towers.

The bundle is opened once, canaries included, before one rename makes it visible.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from features.artifact import MANIFEST, Artifact, publish, write_json
from features.directories import exchange, remove, sync_directory
from features.errors import ArtifactError, BundleError
from features.text import NORMALISER, TEXT_TEMPLATE
from serving import canary, signing
from serving.build import IndexConfig
from serving.bundle import CURVE_FILES, ID_LENGTH, KIND, TOWERS, load_towers, open_bundle
from serving.choose import Choice, choose, store_in_milvus
from serving.devices import describe_faiss
from serving.encode import Progress, encode_documents, encode_queries
from serving.graph_choice import Judged, choose_form
from serving.milvus import MilvusIndex
from serving.onnx import FILE as GRAPH_FILE
from serving.provenance import Sources, describe_versions
from serving.pruning import abandoned_in
from serving.signing import SignConfig, TrustedKey
from serving.tune import ann_recall
from serving.vectors import Vectors
from towers.two_tower import TwoTower


def export(
    examples: Path,
    checkpoint: Path,
    evaluation: Path | None,
    bundles: Path,
    index: IndexConfig,
    *,
    sign: SignConfig | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Encode the catalogue, build and tune the index, and publish both with the towers as one bundle.

    The bundle is opened once, canaries included, before it becomes visible. Exporting the same inputs again
    gives the same id and leaves the published bundle in place, provided that the same index is chosen.

    Args:
        examples: `examples` artifact: the catalogue, and the held-out queries for tuning and measuring.
        checkpoint: `checkpoint` artifact.
        evaluation: `evaluation` artifact of this checkpoint, copied into the manifest; None leaves it empty.
        bundles: Folder that receives `<bundle id>/`.
        index: What to build.
        sign: With which key the bundle is signed; None leaves it unsigned.
        progress: Called as documents are encoded.

    Raises:
        ArtifactError: If an input is damaged or the evaluation belongs to another checkpoint.
        BundleError: If the catalogue is empty or a vector is not finite.
        ConfigError: If the index cannot be built as configured.
    """
    sources = Sources.read(examples, checkpoint, evaluation)
    towers = load_towers(checkpoint / TOWERS)
    documents = pd.read_parquet(examples / "documents.parquet")
    if documents.empty:
        raise BundleError(f"{examples} has no documents; there is nothing to index")
    document_ND = encode_documents(towers, documents, progress=progress)
    tuning_BD = encode_queries(towers, sources.tuning)
    if index.milvus is None:
        choice = choose(document_ND, tuning_BD, index, towers.similarity)
    else:
        choice = store_in_milvus(document_ND, documents, tuning_BD, index, towers.similarity)
    built = choice.index
    doc_ids = documents["doc_id"].tolist()
    content: dict[str, Any] = {
        **sources.facts(),
        "text_normaliser": NORMALISER,
        "text_template": TEXT_TEMPLATE,
        "similarity": towers.similarity,
        "unit_length": towers.similarity == "cosine",
        "dimension": built.dimension,
        "documents": len(doc_ids),
        "index": _described(choice, towers, document_ND, sources, index),
        "versions": describe_versions(),
        "faiss": describe_faiss(),
    }
    if choice.curve is not None:
        content["measured"] = {"index_curve": choice.curve.as_json()}
    judged = Judged(pd.read_parquet(examples / "validation.parquet"), doc_ids, document_ND)
    form = choose_form(towers, index.query_onnx, judged)
    content["query_encoder"] = form.facts
    canaries = canary.choose(sources.held_out, documents)
    answers = canary.served(canaries, form.encoder, built)
    content["canaries"] = canary.record(
        canaries, encode_queries(towers, canaries), document_ND, answers, doc_ids
    )

    def write(directory: Path) -> None:
        shutil.copytree(checkpoint / TOWERS, directory, dirs_exist_ok=True)
        if form.graph is not None:
            (directory / GRAPH_FILE).write_bytes(form.graph)
        (directory / "index").mkdir()
        built.write(directory / "index" / built.file)
        if choice.curve is not None:
            choice.curve.write(directory / "index")
        write_json(directory / "ids.json", doc_ids)
        shutil.copyfile(examples / "documents.parquet", directory / "documents.parquet")
        for source in (sources.examples, sources.checkpoint):  # what was copied is what was verified
            source.check_unchanged()

    return publish_bundle(bundles, content, write, sign)


def _described(
    choice: Choice, towers: TwoTower, document_ND: Vectors, sources: Sources, config: IndexConfig
) -> dict[str, Any]:
    """Say what was chosen on the tuning queries, and what it gives on others, the test queries."""
    measured = ann_recall(choice.index, encode_queries(towers, sources.measuring), document_ND, config.k)
    return {
        "factory": choice.factory,
        "metric": "inner_product",
        "search": choice.parameters,
        "built_on": choice.index.note,
        "note": choice.note,
        "bytes": choice.index.stored_bytes,
        "ann_recall": {
            "k": min(config.k, choice.index.size),
            "value": measured,
            "queries": len(sources.measuring),
            "split": sources.measuring_split,
            "target": config.target_recall,
            "target_met_when_tuned": choice.met,
        },
    }


def publish_bundle(
    bundles: Path, content: dict[str, Any], write: Callable[[Path], None], sign: SignConfig | None = None
) -> Artifact:
    """Write under a hidden name, open it once, sign it, and rename it to its id.

    An equal bundle that is there already stays, unless this one is signed and that one is not: somebody else
    may have made it, with other timings. What killed exports left is swept.

    Args:
        bundles: Folder that receives `<bundle id>/`.
        content: What the manifest is to say.
        write: Fills a directory with the bundle's files.
        sign: With which key; None leaves it unsigned.

    Raises:
        BundleError: If it cannot be opened, or another one took its place.
        ConfigError: If the key cannot be used.
    """
    for leftover in abandoned_in(bundles):
        if not (leftover / "index" / MilvusIndex.file).exists():  # `prune` ends its collection, too
            remove(leftover)
    hidden = bundles / f".export-{uuid.uuid4().hex}"
    own_keys: tuple[TrustedKey, ...] = ()
    try:
        dated = {**content, "created_at": datetime.now(UTC).isoformat()}
        with publish(hidden, KIND, dated, CURVE_FILES) as staging:
            write(staging)
        made = open_bundle(hidden, "cpu").artifact
        final = bundles / made.digest[:ID_LENGTH]
        if sign is not None:
            signing.sign(made, sign)
            own_keys = (signing.read_private_key(sign.key).public_key(),)
        if os.path.lexists(final) and not _is_made(final, made.digest):
            final.rename(bundles / f".damaged-{final.name}-{uuid.uuid4().hex}")
        if not os.path.lexists(final):
            hidden.rename(final)
        elif not _is_signed(final, own_keys):
            exchange(hidden, final)
        sync_directory(bundles)
        published = Artifact.read(final, KIND, approve=partial(signing.check, final, own_keys))
    finally:
        remove(hidden)
    if published.digest != made.digest:
        raise BundleError(f"{final} was replaced while it was published; keep others from writing there")
    return published


def _is_made(path: Path, digest: str) -> bool:
    """Return whether a path is a whole bundle of this digest, and no link to one."""
    try:
        found = Artifact.read(path, KIND, verify=True)
    except ArtifactError:
        return False
    return found.digest == digest and not path.is_symlink()


def _is_signed(path: Path, keys: tuple[TrustedKey, ...]) -> bool:
    """Return whether one of the keys signed a bundle, or none has to."""
    try:
        signing.check(path, keys, (path / MANIFEST).read_bytes())
    except BundleError:
        return False
    return True
