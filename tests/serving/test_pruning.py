import json
import os
import shutil
import time
import uuid
from pathlib import Path

import pytest

from features.artifact import MANIFEST, Artifact, publish
from features.errors import ArtifactError
from serving.pruning import ABANDONED_SECONDS, prune
from serving.store import Store


def filled(root: Path, names: str, promoted: str) -> tuple[Store, dict[str, str]]:
    """A store with bundles of these names, each a day younger than the one before, some promoted in turn."""
    store, ids = Store(root), {}
    store.bundles.mkdir(parents=True)
    for place, name in enumerate(names):
        with publish(root / "new", "bundle", {"name": name}) as staging:
            (staging / "file").write_text(name * 1000)
        ids[name] = Artifact.read(root / "new").digest[:16]
        path = (root / "new").rename(store.bundles / ids[name])
        age(path, (len(names) - place) * 86_400 - 60)
    for name in promoted:
        store.set_champion(ids[name], "promoted")
    return store, ids


def age(path: Path, seconds: float) -> Path:
    moment = time.time() - seconds
    for entry in (*path.rglob("*"), path):
        os.utime(entry, (moment, moment))
    return path


def test_the_champion_and_what_a_rollback_goes_back_to_never_go(tmp_path):
    store, ids = filled(tmp_path, "abcde", "bad")
    done = prune(store, keep=0)
    assert done.removed == [ids["b"], ids["c"], ids["e"]]
    assert done.kept == {ids["a"]: "what a rollback goes back to", ids["d"]: "champion"}
    assert store.roll_back()[0].bundle_id == ids["a"]


def test_the_newest_and_the_young_stay_and_the_history_keeps_the_rest(tmp_path):
    store, ids = filled(tmp_path, "abcdef", "abf")
    assert prune(store, keep=1, dry_run=True).removed == [ids[name] for name in "acd"]
    done = prune(store, keep=1, keep_days=3)
    assert done.removed == [ids["a"], ids["c"]]
    assert done.kept[ids["d"]] == "made in the last 3 days"
    assert done.kept[ids["e"]] == "one of the newest 1"
    assert [entry.bundle_id for entry in store.history()] == [ids[name] for name in "abf"]
    store.roll_back()
    with pytest.raises(ArtifactError, match="has no bundle"):
        store.roll_back()


def test_a_bundle_is_as_old_as_its_manifest_says_wherever_it_was_copied(tmp_path, make):
    store, made = Store(tmp_path), [make.shop(tmp_path, seed=seed).path for seed in range(3)]
    for number, path in enumerate(made):
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["content"]["created_at"] = f"2026-01-0{3 - number}T00:00:00+00:00"
        (path / MANIFEST).write_text(json.dumps(manifest))
    assert store.bundle_ids() == [path.name for path in reversed(made)]
    assert prune(store, keep=1).kept == {made[0].name: "one of the newest 1"}


def test_as_many_as_may_stay_do(tmp_path):
    store, ids = filled(tmp_path, "abcd", "d")
    done = prune(store, keep=5)
    assert done.removed == []
    assert [done.kept[ids[name]] for name in "abc"] == ["one of the newest 5"] * 3
    (store.bundles / ids["a"] / "stray").touch()  # refused until somebody moves it away
    assert prune(store, keep=5).removed == []
    assert prune(store, keep=2).removed == [ids["a"]]


def test_what_is_no_bundle_of_its_name_is_not_counted_among_the_newest(tmp_path):
    store, ids = filled(tmp_path, "abcd", "d")
    copied = Path(shutil.copytree(store.bundles / ids["a"], store.bundles / ("f" * 16)))
    age(copied, 0)
    done = prune(store, keep=2)
    assert done.removed == [ids["a"]]
    assert done.kept[ids["b"]] == done.kept[ids["c"]] == "one of the newest 2"
    assert done.kept[copied.name] == "damaged, beside the newest 2"
    assert prune(store, keep=0).removed == [ids["b"], ids["c"], copied.name]


def test_what_a_rollback_would_pass_over_protects_nothing(tmp_path):
    store, ids = filled(tmp_path, "abc", "abc")
    (store.bundles / ids["b"] / "file").write_text("x" * 1000)  # as long as before
    assert prune(store, keep=0).kept[ids["a"]] == "what a rollback goes back to"
    assert store.roll_back()[0].bundle_id == ids["a"]


def test_a_damaged_rollback_target_does_not_protect_itself_but_the_one_before(tmp_path):
    store, ids = filled(tmp_path, "abc", "abc")
    (store.bundles / ids["b"] / "file").unlink()
    assert prune(store, keep=0).removed == [ids["b"]]
    assert store.roll_back()[0].bundle_id == ids["a"]


def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path):
    store, _ = filled(tmp_path, "abcd", "ab")
    before = sorted(entry.name for entry in tmp_path.rglob("*"))
    told = prune(store, keep=0, dry_run=True)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == before
    assert prune(store, keep=0) == told
    assert told.freed > 2000


def test_without_a_readable_pointer_nothing_is_removed(tmp_path):
    store, ids = filled(tmp_path, "ab", "b")
    store.pointer.write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        prune(store, keep=0)
    assert store.bundle_ids() == [ids["a"], ids["b"]]


def test_a_store_without_a_champion_keeps_the_newest(tmp_path):
    store, ids = filled(tmp_path, "abc", "")
    assert prune(store, keep=2).removed == [ids["a"]]


def test_only_leftovers_that_were_quiet_for_an_hour_go(tmp_path):
    store, _ = filled(tmp_path, "a", "a")
    names = [f".export-{uuid.uuid4().hex}", f"..export-{uuid.uuid4().hex}.{uuid.uuid4().hex}"]
    (tmp_path / "lake").mkdir()
    old = [store.bundles / names[0], store.bundles / names[1], tmp_path / "lake" / f".key.{uuid.uuid4().hex}"]
    at_work = store.bundles / f".export-{uuid.uuid4().hex}"
    for path in (*old, at_work):
        (path / "index").mkdir(parents=True)
        (path / "index" / "index.faiss").write_text("half")
        age(path, ABANDONED_SECONDS + 60)
    (at_work / "index" / "index.faiss").write_text("more")
    leftover = tmp_path / ".kept"
    leftover.write_text("a user's own")
    age(leftover, 10 * ABANDONED_SECONDS)
    done = prune(store, keep=9)
    assert sorted(done.abandoned) == sorted(path.relative_to(tmp_path).as_posix() for path in old)
    assert not any(path.exists() for path in old)
    assert at_work.exists()
    assert leftover.exists()


def test_a_link_among_leftovers_is_removed_and_not_followed(tmp_path):
    store, _ = filled(tmp_path / "store", "a", "a")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    link = store.bundles / f".export-{uuid.uuid4().hex}"
    link.symlink_to(precious)
    os.utime(link, (0, 0), follow_symlinks=False)
    age(precious, 10 * ABANDONED_SECONDS)
    assert prune(store, keep=9).abandoned == [f"bundles/{link.name}"]
    assert (precious / "file").read_text() == "kept"
    assert not link.is_symlink()


def test_what_a_killed_prune_hid_is_removed_by_the_next(tmp_path):
    store, ids = filled(tmp_path, "ab", "b")
    hidden = store.bundles / f".pruned-{uuid.uuid4().hex}"
    (store.bundles / ids["a"]).rename(hidden)
    assert store.bundle_ids() == [ids["b"]]
    assert prune(store, keep=5).abandoned == [f"bundles/{hidden.name}"]
    assert not hidden.exists()


def test_pruning_while_bundles_are_listed_and_read_breaks_no_reader(tmp_path):
    store, ids = filled(tmp_path, "abcdefgh", "ah")
    sound = {
        name: shutil.copytree(store.bundles / ids[name], tmp_path / "copies" / name) for name in "bcdefg"
    }
    for _ in range(5):
        prune(store, keep=0)
        assert set(store.bundle_ids()) == {ids["a"], ids["h"]}
        for name, copy in sound.items():
            shutil.copytree(copy, store.bundles / ids[name])
    assert json.loads(store.pointer.read_text())["bundle_id"] == ids["h"]
