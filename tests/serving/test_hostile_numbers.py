"""NaN, infinities, 1e30, subnormal, zero, other shapes and types, nothing: as query, document, export.

Each is refused, or what comes of it has finite scores and ids of the catalogue.
"""

import math
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from features.artifact import Artifact, publish
from features.errors import TwotowerError
from serving.build import IndexConfig, build
from serving.bundle import Bundle, load
from serving.export import export
from serving.retriever import Retriever

ROWS, DIMENSION = 64, 16
HARMFUL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e30": 1e30}
HARMLESS = {"subnormal": 1e-40, "zero": 0.0}
OTHERS = {"text": "many", "missing": None, "empty": "", "negative": -1.0}
slow = pytest.mark.slow
FACTORIES = ("Flat", "IVF4,Flat", "HNSW8", "PQ4x4fs,RFlat")


def vectors(rows: int = ROWS) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((rows, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def check_answers(bundle_path: Path) -> None:
    """Every answer of a bundle has finite scores and ids that exist."""
    bundle = load(bundle_path)
    for text in ("red shoes", "tea kettle", "茶壶"):
        hits = Retriever(bundle).search(text, k=len(bundle.doc_ids))
        assert hits
        assert all(math.isfinite(hit.score) and hit.doc_id in bundle.rows for hit in hits)


def check_refusal(error: Exception, bundles: Path) -> None:
    """It is one line, and nothing was published or left behind."""
    assert len(str(error).splitlines()) == 1
    assert not bundles.exists() or not any(bundles.iterdir())


@pytest.fixture(scope="module", params=FACTORIES)
def index(request) -> Any:
    return build(vectors(), IndexConfig(factory=request.param, k=5), "cosine")


@pytest.mark.parametrize("value", HARMFUL.values(), ids=HARMFUL)
def test_a_query_vector_that_is_not_finite_or_absurd_never_reaches_the_index(index: Any, value: float):
    for place in ((0, 0), (1, DIMENSION - 1)):
        query_BD = vectors(2)
        query_BD[place] = value
        with pytest.raises(ValueError, match="not finite or longer"):
            index.search(query_BD, 5)


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_a_query_vector_of_nothing_gets_finite_scores_and_rows_that_exist(index: Any, value: float):
    (found,) = index.search(np.full((1, DIMENSION), value, dtype=np.float32), ROWS)
    assert np.isfinite(found.scores).all()
    assert set(found.rows.tolist()) <= set(range(ROWS))


@pytest.mark.parametrize(
    "query",
    [
        vectors(1)[:, :-1],
        np.zeros((1, DIMENSION + 1), dtype=np.float32),
        vectors(1)[0],
        vectors(1).astype(np.float64),
        vectors(1).astype(np.int32),
        vectors(1).astype(object),
        vectors(1).tolist(),
        None,
    ],
    ids=["shorter", "longer", "flat", "float64", "int32", "object", "list", "None"],
)
def test_a_query_vector_of_another_shape_or_type_is_refused(index: Any, query: Any):
    with pytest.raises(ValueError, match="required"):
        index.search(query, 5)


def test_no_query_vectors_get_no_answers(index: Any):
    assert index.search(np.zeros((0, DIMENSION), dtype=np.float32), 5) == []


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("value", HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_document_vector_that_no_towers_make_is_not_indexed(factory: str, similarity: str, value: float):
    document_ND = vectors()
    document_ND[9, 2] = value
    with pytest.raises(TwotowerError, match="not finite or longer"):
        build(document_ND, IndexConfig(factory=factory, k=5), similarity)


def poisoned(target: Path, source: Path, name: str, value: float) -> Path:
    """A checkpoint with one weight changed."""
    with publish(target, "checkpoint", {}) as staging:
        for file in (source / "two_tower").rglob("*"):
            copy = staging / file.relative_to(source)
            if file.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        weights = load_file(staging / "two_tower" / name)
        largest = max(weights, key=lambda key: weights[key].size)
        weights[largest].reshape(-1)[:] = np.where(
            np.arange(weights[largest].size) % 7 == 0, value, weights[largest].reshape(-1)
        )
        save_file(weights, staging / "two_tower" / name)
    return Artifact.read(target).path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(f"{tower}/model.safetensors", value, id=f"{tower}-{name}", marks=() if fast else slow)
        for tower in ("query", "document")
        for name, value in (HARMFUL | HARMLESS).items()
        for fast in ((tower, name) == ("document", "nan"),)
    ],
)
def test_weights_that_are_not_numbers_fail_the_export_or_do_no_harm(
    shop: Path, tmp_path: Path, name: str, value: float
):
    checkpoint = poisoned(tmp_path / "poisoned", shop / "checkpoints" / "0", name, value)
    try:
        bundle = export(shop / "examples", checkpoint, None, tmp_path / "bundles", IndexConfig(k=5))
    except TwotowerError as error:
        check_refusal(error, tmp_path / "bundles")
        assert value in HARMFUL.values() or math.isnan(value)
    else:
        assert math.isfinite(value)
        check_answers(bundle.path)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(value, id=name, marks=() if name in ("inf", "1e30") else slow)
        for name, value in (HARMFUL | HARMLESS | OTHERS).items()
    ],
)
def test_a_feature_that_is_no_number_fails_the_export_or_does_no_harm(tmp_path: Path, make, value: Any):
    documents = make.catalogue()
    documents["clicks"] = documents["clicks"].astype("float64" if isinstance(value, float) else object)
    documents.loc[3, "clicks"] = value
    if isinstance(value, str):
        documents["clicks"] = documents["clicks"].map(str)
    make.examples(tmp_path / "good")
    make.examples(tmp_path / "examples", documents=documents)
    make.checkpoint(tmp_path / "checkpoint", tmp_path / "good", make.towers_config())
    try:
        bundle = export(
            tmp_path / "examples", tmp_path / "checkpoint", None, tmp_path / "bundles", IndexConfig(k=5)
        )
    except TwotowerError as error:
        check_refusal(error, tmp_path / "bundles")
        assert value not in HARMLESS.values()
    else:
        check_answers(bundle.path)


def test_a_catalogue_of_nothing_fails_the_export(tmp_path: Path, make):
    make.examples(tmp_path / "good")
    make.examples(tmp_path / "examples", documents=make.catalogue().iloc[:0])
    make.checkpoint(tmp_path / "checkpoint", tmp_path / "good", make.towers_config())
    with pytest.raises(TwotowerError, match="no documents"):
        export(tmp_path / "examples", tmp_path / "checkpoint", None, tmp_path / "bundles", IndexConfig(k=5))


@pytest.mark.parametrize(
    "body",
    [
        '{"text": NaN}',
        '{"text": Infinity}',
        '{"text": 1e30}',
        '{"text": 0}',
        '{"text": ""}',
        '{"text": []}',
        '{"text": null}',
        '{"text": "red", "k": NaN}',
        '{"text": "red", "k": -Infinity}',
        '{"text": "red", "k": 1e30}',
        '{"text": "red", "k": 1e-40}',
        '{"text": "red", "k": 0}',
        '{"text": "red", "k": "3"}',
        '{"text": "red", "k": null}',
        '{"history": [NaN]}',
        '{"history": []}',
        "NaN",
        "",
        "[]",
    ],
)
def test_a_request_with_such_a_value_is_a_4xx(client: httpx.Client, body: str):
    reply = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500
    assert set(reply.json()["error"]) == {"code", "message"}


def test_a_bundle_on_disk_with_such_a_vector_is_refused(bundle: Bundle, tmp_path: Path):
    """The way round the export: an index that somebody else wrote, with digests that fit."""
    rows = len(bundle.doc_ids)
    for value in (math.nan, 1e30):
        document_ND = vectors(rows)
        document_ND[5, 5] = value
        index = faiss.IndexFlatIP(DIMENSION)
        index.add(document_ND)
        content = dict(bundle.artifact.content)
        with publish(tmp_path / "new", "bundle", content) as staging:
            for name in bundle.artifact.manifest["files"]:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).write_bytes((bundle.artifact.path / name).read_bytes())
            faiss.write_index(index, str(staging / "index" / "index.faiss"))
        target = tmp_path / Artifact.read(tmp_path / "new").digest[:16]
        (tmp_path / "new").rename(target)
        with pytest.raises(TwotowerError, match="not finite"):
            load(target)
