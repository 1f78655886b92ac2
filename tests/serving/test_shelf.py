import threading

import pytest

import serving.shelf
from serving.shelf import RefusedBundleError, Shelf, UnknownBundleError
from serving.store import Store


def test_at_most_two_bundles_stay_and_the_one_not_asked_for_longest_goes(several: Store):
    first, second, third = several.bundle_ids()
    shelf = Shelf(several)
    opened = {bundle_id: shelf.get(bundle_id) for bundle_id in (first, second)}
    assert shelf.get(first) is opened[first]
    assert shelf.get(third).bundle.bundle_id == third
    assert shelf.ids() == [first, third]
    assert shelf.find(second) is None


def test_a_bundle_that_many_ask_for_is_opened_once(several: Store, monkeypatch):
    loads, load = [], serving.shelf.load

    def counted(path, *options):
        loads.append(path.name)
        return load(path, *options)

    monkeypatch.setattr(serving.shelf, "load", counted)
    shelf = Shelf(several)
    bundle_id = several.bundle_ids()[1]
    threads = [threading.Thread(target=shelf.get, args=(bundle_id,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [bundle_id]


def test_a_damaged_bundle_is_refused_and_left_alone_for_a_while(tmp_path, make, monkeypatch):
    store = Store(tmp_path)
    bundle_id = make.shop(tmp_path).path.name
    ids = store.bundles / bundle_id / "ids.json"
    sound = ids.read_bytes()
    ids.write_bytes(sound.replace(b"d01", b"d91"))
    shelf = Shelf(store)
    for _ in range(2):
        with pytest.raises(RefusedBundleError, match=r"SHA-256|ids\.json"):
            shelf.get(bundle_id)
        ids.write_bytes(sound)  # the second time it is not even looked at
    monkeypatch.setattr(shelf, "_refused", {})
    assert shelf.get(bundle_id).bundle.bundle_id == bundle_id


@pytest.mark.parametrize("bundle_id", ["0" * 16, "../../etc", "", "champion.json"])
def test_what_the_store_does_not_have_is_unknown(several: Store, bundle_id):
    with pytest.raises(UnknownBundleError, match="GET /v1/bundles"):
        Shelf(several).get(bundle_id)


def test_a_search_may_ask_another_bundle_and_its_reply_names_it(several: Store, make):
    champion, other, _ = several.bundle_ids()
    with make.server(several.root) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        replies = {
            bundle_id: client.post("/v1/search", json={"text": "red shoes", "bundle_id": bundle_id}).json()
            for bundle_id in (champion, other)
        }
        assert {name: reply["bundle_id"] for name, reply in replies.items()} == {
            champion: champion,
            other: other,
        }
        assert replies[champion]["hits"] != replies[other]["hits"]
        near = client.get("/v1/documents/d01/neighbors", params={"bundle_id": other}).json()
        assert near["bundle_id"] == other
        vectors = client.post("/v1/embed", json={"queries": [{"text": "a"}], "bundle_id": other}).json()
        assert vectors["bundle_id"] == other
        unknown = client.post("/v1/search", json={"text": "a", "bundle_id": "0" * 16})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_bundle")
        damaged = several.bundles / several.bundle_ids()[2] / "documents.parquet"
        sound = damaged.read_bytes()
        damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        refused = client.post("/v1/search", json={"text": "a", "bundle_id": several.bundle_ids()[2]})
        damaged.write_bytes(sound)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bundle_refused")
        assert client.get("/readyz").json()["bundle_id"] == champion
