"""Documents encoded again against the vectors in the index."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from pymilvus import MilvusClient

import serving.milvus
from features.artifact import Artifact
from features.errors import BundleError
from serving import agreement
from serving.agreement import compare
from serving.build import IndexConfig, build
from serving.bundle import Bundle, load
from serving.encode import encode_documents
from serving.faiss_file import read_faiss
from serving.index import Index, read
from serving.milvus import MilvusConfig


def indexed(bundle: Bundle, factory: str, folder: Path) -> Bundle:
    """The bundle with its documents in an index of another kind."""
    document_ND = encode_documents(bundle.towers, bundle.documents)
    (folder / "index").mkdir()
    build(document_ND, IndexConfig(factory=factory, k=5), "cosine").write(folder / "index" / "index.faiss")
    artifact = Artifact(folder, bundle.artifact.manifest, bundle.artifact.fingerprint)
    return replace(bundle, artifact=artifact, index=read(folder / "index" / "index.faiss", "cpu"))


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF2,SQ4", "HNSW4,SQ8", "PQ4x4fs,RFlat", "IVF2,PQ4x4fs"])
def test_a_sound_index_agrees_with_its_towers(
    bundle: Bundle, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agreement, "_ROWS", 10)
    compared = compare(indexed(bundle, factory, tmp_path))
    assert compared == (0 if factory == "IVF2,PQ4x4fs" else len(bundle.doc_ids))


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "HNSW4,SQ8", "PQ4x4fs,RFlat"])
def test_one_changed_byte_of_a_stored_vector_is_found_and_its_document_named(
    bundle: Bundle, tmp_path: Path, factory: str
):
    sound = indexed(bundle, factory, tmp_path)
    for row in (0, 11, len(bundle.doc_ids) - 1):
        host: Any = read_faiss(tmp_path / "index" / "index.faiss")
        part: Any = faiss.downcast_index(getattr(host, "storage", getattr(host, "refine_index", host)))
        code_NB = faiss.vector_to_array(part.codes).reshape(len(bundle.doc_ids), -1)
        code_NB[row, 3] ^= 128  # of SQ8 half the range, of float32 the sign
        faiss.copy_array_to_vector(code_NB.reshape(-1), part.codes)
        named = re.escape(f"document {bundle.doc_ids[row]!r} has another vector")
        with pytest.raises(BundleError, match=named):
            compare(replace(sound, index=Index(host, "cpu")))


def test_another_document_and_other_weights_are_found(bundle: Bundle):
    documents = bundle.documents.copy()
    documents.loc[9, "text"] = "a kettle, as it seems"
    with pytest.raises(BundleError, match="document 'd09'"):
        compare(replace(bundle, documents=documents))
    towers = copy.deepcopy(bundle.towers)
    with torch.no_grad():
        next(iter(towers.document.parameters())).mul_(1.5)
    with pytest.raises(BundleError, match="another vector in the index"):
        compare(replace(bundle, towers=towers))


def test_vectors_in_milvus_are_compared_too(make: SimpleNamespace, tmp_path: Path, monkeypatch):
    where = MilvusConfig(uri=str(tmp_path / "vectors.db"), timeout_seconds=60)
    bundle = load(make.shop(tmp_path, index=IndexConfig(k=5, milvus=where)).path)
    monkeypatch.setattr(serving.milvus, "_REPLY_BYTES", 5 * 4 * 16)  # of five vectors
    assert compare(bundle) == len(bundle.doc_ids)
    client = MilvusClient(where.uri)
    [other] = client.get(bundle.index.collection, ids=[4], output_fields=["*"])
    client.upsert(bundle.index.collection, [other | {"vector": -np.array(other["vector"])}])
    client.close()
    with pytest.raises(BundleError, match=f"document {bundle.doc_ids[4]!r}"):
        compare(bundle)
