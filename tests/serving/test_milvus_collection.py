"""Bundles whose vectors are in Milvus Lite: served, shared by stores, pruned, written out, not updated."""

import os
import shutil
import time
import uuid
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
from serving.milvus_claims import IDENTITY, claim, claims, release
from serving.milvus_collection import URI_VARIABLE, Collection
from serving.pruning import prune
from serving.store import Store
from serving.update import Changes, UpdateConfig, update
from serving.vectors_file import write_vectors


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("milvus") / "vectors.db")


def exported(make: Any, root: Path, milvus: str, seed: int) -> Path:
    where = MilvusConfig(uri=milvus, timeout_seconds=60)
    path: Path = make.shop(root, seed=seed, index=IndexConfig(k=5, milvus=where)).path
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
        stored = Collection(milvus, called(letter), 1, 4, [], "FLAT", {}, 10.0)
        if not client.has_collection(stored.collection):
            client.create_collection(stored.collection, dimension=4)
        with publish(store.root / "new", "bundle", {"letter": letter}) as staging:
            (staging / "index").mkdir()
            write_json(staging / "index" / "milvus.json", asdict(stored))
        bundle_id = Artifact.read(store.root / "new").digest[:16]
        store.bundles.mkdir(exist_ok=True)
        (store.root / "new").rename(store.bundles / bundle_id)
        claim(client, stored.collection, store.bundles)
        made[bundle_id] = stored
    client.close()
    return made


def called(letter: str) -> str:
    return f"twotower_{letter.lower() * 32}"


def test_pruning_drops_the_collections_that_no_bundle_names_any_more(milvus: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    shared, _, champion = named(store, milvus, "abA")
    store.set_champion(champion, "promoted")
    told = prune(store, keep=0, dry_run=True)
    assert shared in told.removed
    assert (told.collections, told.left) == ([called("b")], {})
    assert {called("a"), called("b")} <= collections(milvus)
    assert prune(store, keep=0) == told
    assert called("a") in collections(milvus)
    assert called("b") not in collections(milvus)


def test_pruning_goes_on_where_milvus_does_not_answer_and_says_what_stays(
    milvus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    old, champion = named(store, milvus, "cd")
    store.set_champion(champion, "promoted")
    elsewhere = str(tmp_path / "absent" / "vectors.db")
    monkeypatch.setenv(URI_VARIABLE, elsewhere)
    done = prune(store, keep=0)
    assert (done.removed, done.collections, list(done.left)) == ([old], [], [called("c")])
    assert elsewhere in done.left[called("c")]
    assert f"collection {called('c')} stays in Milvus" in caplog.text
    assert store.bundle_ids() == [champion]
    assert called("c") in collections(milvus)


def ended(milvus: str, name: str) -> None:
    client = MilvusClient(milvus)
    client.drop_collection(name)
    client.close()


def test_stores_that_share_a_collection_keep_it_for_each_other(
    make: Any, milvus: str, tmp_path: Path
) -> None:
    first, second, copied = (Store(tmp_path / name) for name in ("first", "second", "copied"))
    path = exported(make, first.root, milvus, seed=7)
    assert exported(make, second.root, milvus, seed=7).name == path.name
    shutil.copytree(first.root, copied.root)
    shared = collection(path)
    load(copied.bundles / path.name)
    for store, still in ((first, 2), (second, 1)):
        champion = next(iter(named(store, milvus, "e")))
        store.set_champion(champion, "another")
        done = prune(store, keep=0)
        assert (done.removed, done.collections, done.left) == ([path.name], [], {})
        assert done.shared == [shared.collection]
        client = MilvusClient(milvus)
        assert len(claims(client, shared.collection)) == still
        client.close()
    load(copied.bundles / path.name)
    copied.set_champion(next(iter(named(copied, milvus, "e"))), "another")
    assert prune(copied, keep=0).collections == [shared.collection]
    assert shared.collection not in collections(milvus)


def test_a_store_is_itself_again_and_not_its_copy(tmp_path: Path, milvus: str) -> None:
    bundles, elsewhere = tmp_path / "store" / "bundles", tmp_path / "copy"
    bundles.mkdir(parents=True)
    client = MilvusClient(milvus)
    client.create_collection(called("f"), dimension=4)
    for _ in range(2):
        claim(client, called("f"), bundles)
    (tmp_path / "store").rename(tmp_path / "moved")
    bundles = tmp_path / "moved" / "bundles"
    claim(client, called("f"), bundles)
    assert len(claims(client, called("f"))) == 1
    shutil.copytree(bundles, elsewhere)
    claim(client, called("f"), elsewhere)
    assert len(claims(client, called("f"))) == 2
    (tmp_path / IDENTITY).write_text("{")
    claim(client, called("f"), tmp_path)
    assert len(claims(client, called("f"))) == 3
    stored = Collection(milvus, called("f"), 1, 4, [], "FLAT", {}, 10.0)
    assert release(stored, tmp_path / "moved" / "bundles") == "shared"
    assert release(stored, tmp_path / "moved" / "bundles") == "shared"  # another one's claim is never its own
    assert release(stored, elsewhere) == "shared"
    assert release(stored, tmp_path) == "dropped"
    assert release(stored, tmp_path) == "dropped"  # it is gone
    client.close()


def test_a_collection_that_no_store_claimed_is_left_and_said(milvus: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, champion = named(store, milvus, "0e")
    store.set_champion(champion, "promoted")
    client = MilvusClient(milvus)
    for alias in claims(client, called("0")):
        client.drop_alias(alias)
    client.close()
    assert "no store has claimed it" in prune(store, keep=0).left[called("0")]
    assert called("0") in collections(milvus)


def test_where_a_claim_cannot_be_kept_it_is_said(
    milvus: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no folder").touch()
    client = MilvusClient(milvus)
    claim(client, called("1"), tmp_path / "no folder")
    claim(client, called("1"), tmp_path)  # there is no such collection
    client.close()
    assert caplog.text.count(f"collection {called('1')} is not claimed") == 2


def test_what_a_killed_prune_left_goes_with_its_collection(milvus: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    hidden, champion = named(store, milvus, "2e")
    store.set_champion(champion, "promoted")
    leftover = store.bundle_path(hidden).rename(store.bundles / f".pruned-{uuid.uuid4().hex}")
    for entry in (*leftover.rglob("*"), leftover):
        os.utime(entry, (time.time() - 4_000,) * 2)
    assert prune(store, keep=0).collections == [called("2")]
    assert not leftover.exists()
    assert called("2") not in collections(milvus)


def test_a_forged_bundle_makes_nobody_drop_what_is_not_twotowers(milvus: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    forged, champion = named(store, milvus, "3e")
    store.set_champion(champion, "promoted")
    client = MilvusClient(milvus)
    client.create_collection("customers", dimension=4)
    client.close()
    file = store.bundle_path(forged) / "index" / "milvus.json"
    file.write_text(file.read_text().replace(called("3"), "customers"))
    done = prune(store, keep=0)
    assert (done.removed, done.collections, done.left) == ([forged], [], {})
    assert "customers" in collections(milvus)


def test_a_collection_that_is_written_anew_keeps_its_claims(make: Any, milvus: str, tmp_path: Path) -> None:
    path = exported(make, tmp_path, milvus, seed=8)
    name = collection(path).collection
    client = MilvusClient(milvus)
    before = claims(client, name)
    client.delete(name, ids=[0])
    client.flush(name)
    assert exported(make, tmp_path, milvus, seed=8) == path
    assert claims(client, name) == before != []
    client.close()
    assert len(load(path).index.vectors(np.arange(23))) == 23


def test_without_its_collection_a_server_says_503_and_when_to_try_again(
    make: Any, milvus: str, tmp_path: Path
) -> None:
    bundle = exported(make, tmp_path, milvus, seed=5)
    Store(tmp_path).set_champion(bundle.name, "promoted")
    with make.server(tmp_path) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        body = {"text": "red shoes", "k": 3}
        assert len(client.post("/v1/search", json=body).json()["hits"]) == 3
        ended(milvus, collection(bundle).collection)
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
