"""A bundle: query tower, document tower, index, ids and catalogue of one version, published by one rename.

    query/ document/ two_tower.json     the towers, byte for byte as the checkpoint has them
    index/index.faiss                   rows in the order of ids.json
    ids.json                            doc_id of each row
    documents.parquet                   the catalogue, same order: what encoders, BM25 and the page need
    manifest.json                       SHA-256 of every file, and the facts listed in `export`

The directory's name is the first 16 hexadecimal digits of the artifact's digest. A bundle is opened only if
every file matches its SHA-256, the parts agree with each other, and the canary queries get their recorded
answers.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.artifact import Artifact, publish, write_json
from features.errors import ArtifactError, BundleError
from features.lexical import LexicalIndex
from features.text import NORMALISER, TEXT_TEMPLATE, document_text
from serving import canary
from serving import index as indexes
from serving.encode import Progress, encode_documents, encode_queries
from serving.index import Index, IndexConfig
from serving.provenance import Sources, describe_versions
from serving.tune import ann_recall, tune
from towers.two_tower import TwoTower

KIND = "bundle"
ID_LENGTH = 16
_TOWERS = "two_tower"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Nothing in it changes after loading.

    Attributes:
        bundle_id: First 16 digits of the artifact's digest.
        artifact: Path and manifest.
        towers: In evaluation mode.
        index: With the shipped search parameters set.
        documents: The catalogue, in the index's row order.
        doc_ids: Its ids, in the same order.
        rows: The row of each id.
        lexical: BM25 over the same catalogue.
    """

    bundle_id: str
    artifact: Artifact
    towers: TwoTower
    index: Index
    documents: pd.DataFrame
    doc_ids: list[str]
    rows: dict[str, int]
    lexical: LexicalIndex

    @property
    def query_inputs(self) -> list[str]:
        """What a query consists of: `text` or `history`, as the towers were trained."""
        return list(self.artifact.content["query_inputs"])

    @property
    def excludes_history(self) -> bool:
        """Whether a history's own documents are never returned, as in training and evaluation."""
        return bool(self.artifact.content["exclude_seen"])

    @property
    def history_length(self) -> int | None:
        """How many of the latest documents make a history, as in training; None reads all (older bundles)."""
        length = self.artifact.content.get("history_length")
        return None if length is None else int(length)


def export(
    examples: Path,
    checkpoint: Path,
    evaluation: Path | None,
    bundles: Path,
    index: IndexConfig,
    *,
    progress: Progress | None = None,
) -> Artifact:
    """Encode the catalogue, build and tune the index, and publish both with the towers as one bundle.

    The bundle is opened once, canaries included, before it becomes visible. Exporting the same inputs again
    gives the same id and leaves the published bundle in place.

    Args:
        examples: `examples` artifact: the catalogue, and the held-out queries for tuning and measuring.
        checkpoint: `checkpoint` artifact.
        evaluation: `evaluation` artifact of this checkpoint, copied into the manifest; None leaves it empty.
        bundles: Folder that receives `<bundle id>/`.
        index: What to build.
        progress: Called as documents are encoded.

    Raises:
        ArtifactError: If an input is damaged or the evaluation belongs to another checkpoint.
        BundleError: If the catalogue is empty or a vector is not finite.
        ConfigError: If the index cannot be built as configured.
    """
    sources = Sources.read(examples, checkpoint, evaluation)
    towers = _load_towers(checkpoint / _TOWERS)
    documents = pd.read_parquet(examples / "documents.parquet")
    if documents.empty:
        raise BundleError(f"{examples} has no documents; there is nothing to index")
    document_ND = encode_documents(towers, documents, progress=progress)
    built = indexes.build(document_ND, index, towers.similarity)
    doc_ids = documents["doc_id"].tolist()
    content: dict[str, Any] = {
        **sources.facts(),
        "text_normaliser": NORMALISER,
        "text_template": TEXT_TEMPLATE,
        "similarity": towers.similarity,
        "unit_length": towers.similarity == "cosine",
        "dimension": built.dimension,
        "documents": len(doc_ids),
        "index": _tuned(built, towers, document_ND, sources, index),
        "versions": describe_versions(),
        "faiss": indexes.describe_faiss(),
    }
    canaries = canary.choose(sources.held_out, documents)
    content["canaries"] = canary.record(
        canaries, encode_queries(towers, canaries), document_ND, built, doc_ids
    )

    def write(directory: Path) -> None:
        shutil.copytree(checkpoint / _TOWERS, directory, dirs_exist_ok=True)
        (directory / "index").mkdir()
        built.write(directory / "index" / "index.faiss")
        write_json(directory / "ids.json", doc_ids)
        shutil.copyfile(examples / "documents.parquet", directory / "documents.parquet")

    return _publish(bundles, content, write)


def load(path: Path, device: str = "auto") -> Bundle:
    """Open a published bundle after checking all of it.

    Args:
        path: `…/bundles/<bundle id>`.
        device: Where the index is searched: `auto`, `cpu` or `gpu`.

    Raises:
        BundleError: If a file is missing or damaged, parts disagree, or a canary answers differently.
        ConfigError: If a GPU is required and there is none.
    """
    indexes.require_device(device)
    artifact, towers, index, documents = _open(path, device)
    bundle_id = artifact.digest[:ID_LENGTH]
    if path.resolve().name != bundle_id:
        raise BundleError(f"{path} holds bundle {bundle_id}; a bundle's directory carries its id")
    doc_ids = documents["doc_id"].tolist()
    texts = [
        document_text(title, text) for title, text in zip(documents["title"], documents["text"], strict=True)
    ]
    rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    lexical = LexicalIndex.build(doc_ids, texts)
    return Bundle(bundle_id, artifact, towers, index, documents, doc_ids, rows, lexical)


def _open(path: Path, device: str) -> tuple[Artifact, TwoTower, Index, pd.DataFrame]:
    try:
        artifact = Artifact.read(path, KIND, verify=True)
        content = artifact.content
        if content["text_normaliser"] != NORMALISER:
            raise BundleError(
                f"it was built with text normaliser {content['text_normaliser']!r}; this has {NORMALISER!r}"
            )
        towers = _load_towers(path)
        index = indexes.read(path / "index" / "index.faiss", device)
        index.set_parameters(content["index"]["search"])
        documents = pd.read_parquet(path / "documents.parquet")
        doc_ids = json.loads((path / "ids.json").read_text(encoding="utf-8"))
        _check_agreement(content, towers, index, documents, doc_ids)
        rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        canary.check(content["canaries"], towers, index, documents, rows)
    except ArtifactError as error:
        raise BundleError(f"bundle {path.name} is refused: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a library makes of parts that do not fit is damage
        raise BundleError(f"bundle {path.name} is refused: {_one_line(error)}") from error
    return artifact, towers, index, documents


def _check_agreement(
    content: Any, towers: TwoTower, index: Index, documents: pd.DataFrame, doc_ids: list[str]
) -> None:
    if towers.similarity != content["similarity"]:
        raise BundleError(f"its towers score by {towers.similarity}, its index by {content['similarity']}")
    if content["similarity"] not in indexes.SIMILARITIES:
        raise BundleError(f"its similarity {content['similarity']!r} cannot be served by inner product")
    dimensions = {towers.query.dimension, towers.document.dimension, index.dimension, content["dimension"]}
    if len(dimensions) != 1:
        raise BundleError(f"its towers, index and manifest differ in dimension: {sorted(dimensions)}")
    if documents["doc_id"].tolist() != doc_ids or len(set(doc_ids)) != len(doc_ids):
        raise BundleError("its ids and its catalogue do not list the same documents in the same order")
    if not index.size == len(doc_ids) == content["documents"]:
        raise BundleError(f"its index has {index.size} vectors for {len(doc_ids)} documents")


def _load_towers(directory: Path) -> TwoTower:
    try:
        return TwoTower.load(directory).eval()
    except MemoryError:
        raise
    except Exception as error:  # digests were checked, so what it cannot read is another release's or damage
        raise BundleError(f"its towers cannot be loaded from {directory}: {_one_line(error)}") from error


def _tuned(
    built: Index, towers: TwoTower, document_ND: indexes.Vectors, sources: Sources, config: IndexConfig
) -> dict[str, Any]:
    """Tune on validation queries, measure on test queries, and say what was chosen and reached."""
    tuning = tune(built, encode_queries(towers, sources.tuning), document_ND, config)
    measured = ann_recall(built, encode_queries(towers, sources.measuring), document_ND, config.k)
    return {
        "factory": config.factory,
        "metric": "inner_product",
        "search": tuning.parameters,
        "built_on": built.note,
        "ann_recall": {
            "k": min(config.k, built.size),
            "value": measured,
            "queries": len(sources.measuring),
            "split": sources.measuring_split,
            "target": config.target_ann_recall,
            "target_met_when_tuned": tuning.met,
            "curve": tuning.curve,
        },
    }


def _publish(bundles: Path, content: dict[str, Any], write: Callable[[Path], None]) -> Artifact:
    """Write under a hidden name, open it once, and rename it to its id."""
    hidden = bundles / f".export-{uuid.uuid4().hex}"
    try:
        with publish(hidden, KIND, content) as staging:
            write(staging)
        artifact, *_ = _open(hidden, "cpu")
        final = bundles / artifact.digest[:ID_LENGTH]
        if final.exists() and not _is_whole(final):
            final.rename(bundles / f".damaged-{final.name}-{uuid.uuid4().hex}")
        if not final.exists():
            hidden.rename(final)
        return Artifact.read(final, KIND)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        Artifact.read(path, KIND, verify=True)
    except ArtifactError:
        return False
    return True


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
