"""Vectors in Milvus Lite, a real engine behind the client of a cluster, against FAISS flat."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from pymilvus import MilvusClient

from features.errors import BundleError, ConfigError
from serving.build import IndexConfig, build
from serving.bundle import load
from serving.filters import Catalogue, Selection
from serving.milvus import MilvusConfig, MilvusIndex
from serving.milvus_collection import IndexUnavailableError
from serving.retriever import Retriever

DOCUMENTS = 12_000
ODD = 'od"d \\ näme'


def vectors(count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def catalogue() -> pd.DataFrame:
    rows = np.arange(DOCUMENTS)
    return pd.DataFrame(
        {
            "doc_id": [f"shelf/{row} \"ü'" for row in rows],
            "title": "t",
            "text": "",
            "brand": np.where(rows % 7 == 0, None, np.where(rows % 2 == 0, "acme", 'a "b" \\ c')),
            "price": np.where(rows % 5 == 0, np.nan, rows / 10),
            "stock": rows,
            "colours": [["red", "blue"] if row % 3 else ["green"] for row in rows],
            "cold": rows % 2 == 0,
            "updated_at": pd.date_range("2026-01-01", periods=DOCUMENTS, freq="min", tz="UTC"),
            ODD: np.where(rows % 2 == 0, "x", "y"),
        }
    )


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusIndex]:
    path = tmp_path_factory.mktemp("milvus") / "vectors.db"
    config = MilvusConfig(uri=str(path), timeout_seconds=60)  # a busy machine has less than 10 s of processor
    index = MilvusIndex.create(vectors(DOCUMENTS, 0), catalogue(), config)
    yield index
    index.close()


def flat() -> Any:
    return build(vectors(DOCUMENTS, 0), IndexConfig(), "cosine")


def same(found: Any, exact: Any) -> None:
    for got, want in zip(found, exact, strict=True):
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)


def test_answers_equal_those_of_faiss_flat(milvus: MilvusIndex) -> None:
    query_BD = vectors(20, 1)
    same(milvus.search(query_BD, 10), flat().search(query_BD, 10))
    assert (milvus.size, milvus.dimension) == (DOCUMENTS, 16)


@pytest.mark.parametrize(
    ("filters", "exclude"),
    [
        ({"brand": "acme"}, ()),
        ({"title": "t", "cold": True}, ()),
        ({"brand": 'a "b" \\ c'}, ()),
        ({"brand": {"in": ["acme", "nobody"]}}, ()),
        ({"brand": {"in": []}}, ()),
        ({"price": {"gte": 100, "lt": 900.5}}, ()),
        ({"stock": {"gt": 2_000}}, ()),
        ({"stock": 77}, ()),
        ({"colours": "red"}, ()),
        ({"colours": {"in": ["green", "blue"]}, "cold": True}, ()),
        ({"updated_at": {"gte": "2026-01-02T00:00:00Z", "lt": "2026-01-06T12:00:00+02:00"}}, ()),
        ({ODD: "y"}, ["shelf/3 \"ü'"]),
        ({}, ["shelf/3 \"ü'", "unknown"]),
    ],
)
def test_filters_and_exclusions_equal_those_of_faiss_flat(
    milvus: MilvusIndex, filters: dict[str, Any], exclude: tuple[str, ...]
) -> None:
    selection = Catalogue.build(catalogue()).select(filters, exclude)
    query_BD = vectors(3, 2)
    same(milvus.search(query_BD, 20, selection), flat().search(query_BD, 20, selection))


def test_a_row_that_the_catalogue_forbids_is_an_error(milvus: MilvusIndex) -> None:
    honest = Catalogue.build(catalogue()).select({"brand": "acme"})
    disagreeing = Selection(~honest.mask, int((~honest.mask).sum()), honest.filters)
    with pytest.raises(BundleError, match="filters forbid"):
        milvus.search(vectors(1, 3), 10, disagreeing)


def test_unsafe_queries_never_reach_milvus(milvus: MilvusIndex) -> None:
    broken = vectors(1, 4)
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        milvus.search(broken, 5)
    with pytest.raises(ValueError, match="k = 0"):
        milvus.search(vectors(1, 4), 0)
    with pytest.raises(ValueError, match="no search parameter"):
        milvus.set_parameters({"nprobe": 3})


def test_a_search_past_its_time_is_unavailable_and_no_error_of_grpc(
    milvus: MilvusIndex, tmp_path: Path
) -> None:
    milvus.write(tmp_path / "milvus.json")
    text = (tmp_path / "milvus.json").read_text()
    (tmp_path / "milvus.json").write_text(text.replace('"timeout_seconds": 60.0', '"timeout_seconds": 1e-6'))
    hasty = MilvusIndex.open(tmp_path / "milvus.json")
    with pytest.raises(IndexUnavailableError, match=r"does not answer for twotower_[0-9a-f]{32}: .*eadline"):
        hasty.search(vectors(1, 0), 5)


def test_rows_that_the_bundle_does_not_have_are_an_error(tmp_path: Path) -> None:
    config = MilvusConfig(uri=str(tmp_path / "other.db"), timeout_seconds=60)
    index = MilvusIndex.create(vectors(50, 0), catalogue().head(50), config)
    client = MilvusClient(config.uri)
    [strange] = client.get(index.collection, ids=[7], output_fields=["*"])
    client.delete(index.collection, ids=[7])
    client.insert(index.collection, [strange | {"row": 50}])
    client.close()
    with pytest.raises(BundleError, match="not in the bundle"):
        index.search(vectors(50, 0)[7:8], 5)
    with pytest.raises(BundleError, match="lacks rows"):
        index.vectors(np.array([7]))


def test_vectors_come_back_as_they_were_added(milvus: MilvusIndex) -> None:
    rows = np.array([5, 0, 11_999])
    np.testing.assert_array_equal(milvus.vectors(rows), vectors(DOCUMENTS, 0)[rows])


def test_a_written_name_opens_the_same_collection(milvus: MilvusIndex, tmp_path: Path) -> None:
    milvus.write(tmp_path / "milvus.json")
    opened = MilvusIndex.open(tmp_path / "milvus.json")
    same(opened.search(vectors(2, 5), 5), flat().search(vectors(2, 5), 5))


def test_a_collection_that_is_gone_or_elsewhere_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MilvusConfig(uri=str(tmp_path / "small.db"))
    index = MilvusIndex.create(vectors(50, 0), catalogue().head(50), config)
    index.write(tmp_path / "milvus.json")
    text = (tmp_path / "milvus.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"rows": 50', '"rows": 51'))
    with pytest.raises(BundleError, match="has 50 rows; the bundle has 51"):
        MilvusIndex.open(tmp_path / "other.json")
    MilvusClient(config.uri).drop_collection(index.collection)
    with pytest.raises(IndexUnavailableError):
        index.search(vectors(1, 0), 5)
    with pytest.raises(BundleError, match="has no collection"):
        MilvusIndex.open(tmp_path / "milvus.json")
    (tmp_path / "broken.json").write_text(f'{{"uri": "{uuid.uuid4().hex}"}}')
    with pytest.raises(BundleError, match="does not name a collection"):
        MilvusIndex.open(tmp_path / "broken.json")
    monkeypatch.setenv("TWOTOWER_MILVUS_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9"):
        MilvusIndex.open(tmp_path / "milvus.json")


def test_a_row_that_milvus_refuses_leaves_no_collection(tmp_path: Path) -> None:
    config = MilvusConfig(uri=str(tmp_path / "refused.db"))
    documents = catalogue().head(50)
    documents.loc[49, "doc_id"] = "x" * 70_000
    with pytest.raises(ConfigError, match=r"index\.milvus"):
        MilvusIndex.create(vectors(50, 0), documents, config)
    client = MilvusClient(config.uri)
    assert client.list_collections() == []
    client.close()


def test_a_bundle_whose_vectors_are_in_milvus_answers_as_one_with_faiss(
    make: Any, tmp_path: Path, bundle: Any
) -> None:
    config = IndexConfig(k=5, target_recall=0.9, milvus=MilvusConfig(uri=str(tmp_path / "vectors.db")))
    path = make.shop(tmp_path / "store", index=config).path
    assert [file.name for file in (path / "index").iterdir()] == ["milvus.json"]
    elsewhere = Retriever(load(path))
    here = Retriever(bundle)
    for text in ("red shoes", "茶壶"):
        assert [hit.doc_id for hit in elsewhere.search(text, k=8)] == [
            hit.doc_id for hit in here.search(text, k=8)
        ]
    described = elsewhere.bundle.artifact.content["index"]
    assert described["factory"] == "Milvus FLAT"
    assert described["ann_recall"]["value"] == 1.0
    assert described["ann_recall"]["target_met_when_tuned"] is True
    again = make.shop(tmp_path / "store", index=config).path
    assert again == path


def test_settings_of_faiss_and_of_milvus_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="factory and memory are of faiss"):
        IndexConfig(factory="Flat", milvus=MilvusConfig(uri="x.db"))
