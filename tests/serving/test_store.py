import json
import shutil
import threading
from pathlib import Path

import pytest

from features.artifact import Artifact, publish
from features.errors import ArtifactError, BundleError
from serving.store import Store, earlier_champions, rolled_back


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


def test_a_pointer_that_cannot_be_read_is_one_line(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    store.pointer.mkdir()
    for act in (store.champion, lambda: store.set_champion(one, "try")):
        with pytest.raises(ArtifactError, match=r"champion\.json cannot be read: Is a directory"):
            act()
    store.pointer.rmdir()
    store.pointer.write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"champion\.json is damaged \(RecursionError"):
        store.champion()


def test_a_pointer_that_leads_out_of_the_store_is_damaged(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    store.set_champion(one, "first")
    recorded = json.loads(store.pointer.read_text())
    recorded["bundle_id"] = recorded["history"][-1]["bundle_id"] = "../../elsewhere"
    store.pointer.write_text(json.dumps(recorded))
    with pytest.raises(ArtifactError, match="not a bundle id"):
        store.champion()


def test_a_file_among_the_bundles_is_no_bundle(tmp_path):
    store, one = Store(tmp_path), add_bundle(tmp_path, "one")
    stray = store.bundles / ("a" * 16)
    stray.write_text("stray")
    assert store.bundle_ids() == [one]
    with pytest.raises(BundleError, match=f"has no bundle {stray.name}"):
        store.bundle(stray.name)


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


def promoted(root: Path, names: str) -> tuple[Store, dict[str, str]]:
    """A store in which bundles with these names were promoted, one after the other."""
    store = Store(root)
    ids = {name: add_bundle(root, name) for name in dict.fromkeys(names)}
    for name in names:
        store.set_champion(ids[name], f"promoted {name}")
    return store, ids


def test_a_rollback_makes_the_champion_before_this_one_the_champion_and_keeps_the_history(tmp_path):
    store, ids = promoted(tmp_path, "abc")
    champion, passed_over = store.roll_back()
    assert store.champion() == champion
    assert (champion.bundle_id, champion.rolled_back_from, passed_over) == (ids["b"], ids["c"], {})
    assert [entry.bundle_id for entry in store.history()] == [ids[name] for name in "abcb"]


def test_a_second_rollback_leads_further_back_and_a_promotion_starts_anew(tmp_path):
    store, ids = promoted(tmp_path, "abcd")
    for name in "cba":
        assert store.roll_back()[0].bundle_id == ids[name]
    with pytest.raises(BundleError, match="no earlier champion"):
        store.roll_back()
    assert rolled_back(store.history()) == {ids["b"], ids["c"], ids["d"]}
    store.set_champion(ids["d"], "repaired")
    assert rolled_back(store.history()) == {ids["b"], ids["c"]}
    assert store.roll_back()[0].bundle_id == ids["a"]


def test_a_rollback_passes_over_what_is_damaged_or_gone(tmp_path):
    store, ids = promoted(tmp_path, "abcd")
    (store.bundles / ids["c"] / "file").write_text("d")  # as long as before
    shutil.rmtree(store.bundles / ids["b"])
    champion, passed_over = store.roll_back()
    assert champion.bundle_id == ids["a"]
    assert list(passed_over) == [ids["c"], ids["b"]]
    assert "SHA-256" in passed_over[ids["c"]]
    assert "has no bundle" in passed_over[ids["b"]]


def test_a_rollback_to_an_id_takes_earlier_champions_only(tmp_path):
    store, ids = promoted(tmp_path, "abc")
    stranger = add_bundle(tmp_path, "never promoted")
    for bundle_id, said in ((stranger, "never was"), (ids["c"], "already"), ("..", "never was")):
        with pytest.raises(BundleError, match=said):
            store.roll_back(bundle_id)
    assert store.roll_back(ids["a"], "as told")[0].reason == "as told"
    assert earlier_champions(store.history()) == []
    shutil.rmtree(store.bundles / ids["b"])
    with pytest.raises(BundleError, match="has no bundle"):
        store.roll_back(ids["b"])
    assert store.champion().bundle_id == ids["a"]


def test_a_store_without_a_champion_or_with_a_single_one_cannot_roll_back(tmp_path):
    with pytest.raises(BundleError, match="no champion to roll back from"):
        Store(tmp_path).roll_back()
    store, _ = promoted(tmp_path, "a")
    with pytest.raises(BundleError, match="the only one there ever was"):
        store.roll_back()
    with pytest.raises(ArtifactError, match="no folder"):
        Store(tmp_path / "nowhere").roll_back()


@pytest.mark.parametrize("change", [{"rolled_back_from": 3}, {"rolled_back_from": "../x"}, {"reason": None}])
def test_an_entry_of_other_types_is_damage(tmp_path, change):
    store, _ = promoted(tmp_path, "ab")
    recorded = json.loads(store.pointer.read_text())
    recorded["history"][0] |= change
    store.pointer.write_text(json.dumps(recorded))
    with pytest.raises(ArtifactError, match="is damaged"):
        store.roll_back()


def test_a_pointer_of_the_time_before_rollbacks_is_read(tmp_path):
    store, ids = promoted(tmp_path, "ab")
    recorded = json.loads(store.pointer.read_text())
    for entry in recorded["history"]:
        del entry["rolled_back_from"]
    store.pointer.write_text(json.dumps(recorded))
    assert store.roll_back()[0].bundle_id == ids["a"]
