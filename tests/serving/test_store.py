import json
import threading
from pathlib import Path

import pytest

from features.artifact import Artifact, publish
from features.errors import ArtifactError, BundleError
from serving.store import Store


def add_bundle(root: Path, name: str) -> str:
    with publish(root / "new", "bundle", {"name": name}) as staging:
        (staging / "file").write_text(name)
    bundle_id = Artifact.read(root / "new").digest[:16]
    (root / "bundles").mkdir(exist_ok=True)
    (root / "new").rename(root / "bundles" / bundle_id)
    return bundle_id


def test_a_new_store_has_no_bundle_and_no_champion(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert store.bundle_ids() == []
    assert store.champion() is None


def test_the_champion_is_the_last_promoted_and_history_is_kept(tmp_path):
    one, two = add_bundle(tmp_path, "one"), add_bundle(tmp_path, "two")
    store = Store(tmp_path)
    store.set_champion(one, "first")
    store.set_champion(two, "better")
    store.set_champion(one, "rolled back")
    assert store.champion().bundle_id == one
    assert [(entry.bundle_id, entry.reason) for entry in store.history()] == [
        (one, "first"),
        (two, "better"),
        (one, "rolled back"),
    ]
    assert sorted(store.bundle_ids()) == sorted([one, two])


def test_promoting_the_champion_again_changes_nothing(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    first = store.set_champion(one, "first")
    before = store.pointer.read_bytes()
    assert store.set_champion(one, "again") == first
    assert store.pointer.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"format": 1}',
        b'{"format": 2, "bundle_id": "x", "history": []}',
        b'{"format": 1, "bundle_id": "0000000000000000", "history": []}',
        b"\xff\xfe\x00",
    ],
)
def test_a_corrupted_pointer_is_a_clear_error_and_is_not_overwritten(tmp_path, damage):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    store.pointer.write_bytes(damage)
    for act in (store.champion, lambda: store.set_champion(one, "try")):
        with pytest.raises(ArtifactError, match=r"champion\.json") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert store.pointer.read_bytes() == damage


def test_a_pointer_that_leads_out_of_the_store_is_damaged(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    store.set_champion(one, "first")
    recorded = json.loads(store.pointer.read_text())
    recorded["bundle_id"] = recorded["history"][-1]["bundle_id"] = "../../elsewhere"
    store.pointer.write_text(json.dumps(recorded))
    with pytest.raises(ArtifactError, match="not a bundle id"):
        store.champion()


@pytest.mark.parametrize(
    "bundle_id", ["..", "../x", "", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef/.."]
)
def test_only_bundle_ids_name_bundles(tmp_path, bundle_id):
    with pytest.raises(BundleError, match="not a bundle id"):
        Store(tmp_path).set_champion(bundle_id, "no")


def test_a_bundle_that_is_not_there_or_not_whole_cannot_be_promoted(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    with pytest.raises(BundleError, match="has no bundle"):
        store.set_champion("0" * 16, "no")
    (store.bundles / one / "file").unlink()
    with pytest.raises(BundleError, match="lacks its file"):
        store.set_champion(one, "no")
    assert store.champion() is None


def test_two_writers_lose_no_promotion(tmp_path):
    store = Store(tmp_path)
    bundle_ids = [add_bundle(tmp_path, str(number)) for number in range(16)]
    threads = [
        threading.Thread(target=store.set_champion, args=(bundle_id, "race")) for bundle_id in bundle_ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.bundle_id for entry in store.history()) == sorted(bundle_ids)
