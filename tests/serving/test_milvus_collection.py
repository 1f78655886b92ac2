"""Bundles whose vectors are in Milvus Lite: served, pruned, written as Parquet, and not updated."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymilvus import MilvusClient

from features.artifact import Artifact, publish, write_json
from features.errors import BundleError
from serving.build import IndexConfig
from serving.bundle import load
from serving.milvus import MilvusConfig
from serving.milvus_collection import URI_VARIABLE, Collection, drop
from serving.pruning import prune
from serving.store import Store
from serving.update import Changes, UpdateConfig, update
from serving.vectors_file import write_vectors


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("milvus") / "vectors.db")


def exported(make: Any, root: Path, milvus: str, seed: int) -> Path:
    path: Path = make.shop(root, seed=seed, index=IndexConfig(k=5, milvus=MilvusConfig(uri=milvus))).path
    return path


def collection(bundle: Path) -> Collection:
    return Collection.read(bundle / "index" / "milvus.json")


def collections(milvus: str) -> set[str]:
    client = MilvusClient(milvus)
    names = set(client.list_collections())
    client.close()
    return names


def named(store: Store, milvus: str, letters: str) -> dict[str, Collection]:
    """Bundles of which only the collection matters, by id; a letter is a collection, its capital the same."""
    client, made = MilvusClient(milvus), {}
    for letter in letters:
        stored = Collection(milvus, f"twotower_{letter.lower()}", 1, 4, [], "FLAT", {}, 10.0)
        if not client.has_collection(stored.collection):
            client.create_collection(stored.collection, dimension=4)
        with publish(store.root / "new", "bundle", {"letter": letter}) as staging:
            (staging / "index").mkdir()
            write_json(staging / "index" / "milvus.json", asdict(stored))
        bundle_id = Artifact.read(store.root / "new").digest[:16]
        store.bundles.mkdir(exist_ok=True)
        (store.root / "new").rename(store.bundles / bundle_id)
        made[bundle_id] = stored
    client.close()
    return made


def test_pruning_drops_the_collections_that_no_bundle_names_any_more(milvus: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    shared, _, champion = named(store, milvus, "abA")
    store.set_champion(champion, "promoted")
    told = prune(store, keep=0, dry_run=True)
    assert shared in told.removed
    assert (told.collections, told.left) == (["twotower_b"], {})
    assert {"twotower_a", "twotower_b"} <= collections(milvus)
    assert prune(store, keep=0) == told
    assert "twotower_a" in collections(milvus)
    assert "twotower_b" not in collections(milvus)


def test_pruning_goes_on_where_milvus_does_not_answer_and_says_what_stays(
    milvus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    old, champion = named(store, milvus, "cd")
    store.set_champion(champion, "promoted")
    elsewhere = str(tmp_path / "absent" / "vectors.db")
    monkeypatch.setenv(URI_VARIABLE, elsewhere)
    done = prune(store, keep=0)
    assert (done.removed, done.collections, list(done.left)) == ([old], [], ["twotower_c"])
    assert elsewhere in done.left["twotower_c"]
    assert "collection twotower_c stays in Milvus" in caplog.text
    assert store.bundle_ids() == [champion]
    assert "twotower_c" in collections(milvus)


def test_without_its_collection_a_server_says_503_and_when_to_try_again(
    make: Any, milvus: str, tmp_path: Path
) -> None:
    bundle = exported(make, tmp_path, milvus, seed=5)
    Store(tmp_path).set_champion(bundle.name, "promoted")
    with make.server(tmp_path) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        body = {"text": "red shoes", "k": 3}
        assert len(client.post("/v1/search", json=body).json()["hits"]) == 3
        drop(collection(bundle))
        for reply in (
            client.post("/v1/search", json=body),
            client.post("/v1/search", json={"queries": [body, body]}),
            client.get("/v1/documents/d00/neighbors"),
        ):
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "index_unavailable"
            assert "Milvus does not answer" in reply.json()["error"]["message"]
        assert client.post("/v1/search", json=body | {"mode": "bm25"}).status_code == 200


def test_a_bundle_is_not_updated_and_its_vectors_are_written_out(
    make: Any, milvus: str, tmp_path: Path
) -> None:
    path = exported(make, tmp_path, milvus, seed=6)
    with pytest.raises(BundleError, match="another service; export it again"):
        update(path, path.parent, Changes(deleted=["d00"]), UpdateConfig())
    bundle = load(path)
    write_vectors(bundle, tmp_path / "vectors.parquet")
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["doc_id"].to_pylist() == bundle.doc_ids
    np.testing.assert_array_equal(
        np.array(table["vector"].to_pylist(), dtype=np.float32), bundle.index.vectors(np.arange(23))
    )
