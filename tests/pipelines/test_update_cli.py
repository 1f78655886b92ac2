import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from features.artifact import publish
from features.examples import build_examples
from features.lake import ingest
from pipelines.cli import app
from pipelines.config import PromoteConfig, load_config
from pipelines.promote import promote
from pipelines.workspace import Workspace
from serving.build import IndexConfig
from serving.bundle import load
from serving.export import export
from serving.signing import SignConfig, sign
from serving.store import Store
from towers.two_tower import build_two_tower


def run(*arguments: object) -> tuple[int, str, dict]:
    """Run a command in this process; returns its exit code, what it said, and its JSON."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    lines = done.stdout.strip().splitlines()
    return done.exit_code, done.stderr, json.loads(lines[-1]) if lines and lines[-1][0] == "{" else {}


@pytest.fixture(scope="module")
def store(shop_text: str, shop_data: Path, tmp_path_factory) -> Store:
    """The small shop's catalogue behind untrained towers, exported and served."""
    tmp_path = tmp_path_factory.mktemp("updates")
    (tmp_path / "tiny.yaml").write_text(shop_text.format(store=tmp_path / "store", data=shop_data))
    config = load_config(tmp_path / "tiny.yaml")
    ingest(config.source, tmp_path / "lake", config.ingest)
    build_examples(tmp_path / "lake", tmp_path / "examples", config.examples)
    documents = pd.read_parquet(tmp_path / "examples" / "documents.parquet")
    torch.manual_seed(0)
    queries = pd.read_parquet(tmp_path / "examples" / "train.parquet")
    with publish(tmp_path / "checkpoint", "checkpoint", {}) as staging:
        build_two_tower(config.towers, documents, queries).save(staging / "two_tower")
    opened = Store(tmp_path / "store")
    bundle = export(
        tmp_path / "examples", tmp_path / "checkpoint", None, opened.bundles, IndexConfig(k=10)
    ).path.name
    record = {
        "bundle": bundle,
        "examples": str(tmp_path / "examples"),
        "checkpoint": str(tmp_path / "checkpoint"),
        "evaluation": str(tmp_path / "evaluation"),
    }
    Workspace(opened.root).write_record("exports", "0" * 16, record)
    opened.set_champion(bundle, "first")
    return opened


MISTAKES = [
    ([], 2, "nothing to change; give --documents FILE, --delete ID, or both"),
    (
        ["--delete", "nobody"],
        3,
        "has no such document; leave out what is gone, and write ids as it does, such",
    ),
    (["--delete", "nobody", "--delete", "none"], 3, "no such document, nor 1 other id of those given;"),
    (["--delete", "@nowhere.txt"], 3, "no readable text (No such file or directory)"),
    (["--documents", "nowhere.csv"], 3, "nowhere.csv does not exist"),
    (["--bundle", "../../etc", "--delete", "x"], 4, "is not a bundle id"),
    (["--rebuild-share", "2", "--delete", "x"], 2, "rebuild-share"),
]


def test_a_mistake_is_one_line_and_publishes_nothing(store: Store):
    before = {path for path in store.root.rglob("*") if path.name != ".lock"}
    for arguments, code, said in MISTAKES:
        done = run("update", store.root, *arguments)
        assert done[0] == code, done
        assert said in done[1]
        if "--rebuild-share" not in arguments:  # which the parser refuses, not the command
            assert done[2]["error"]["exit_code"] == code
            assert said in done[2]["error"]["message"]
        assert "Traceback" not in done[1]
    assert {path for path in store.root.rglob("*") if path.name != ".lock"} == before


def test_a_file_of_changes_is_told_the_columns_it_needs_and_those_it_has(store: Store, tmp_path: Path):
    for header, said in [
        (
            "sku,name,price",
            "has the columns sku, name, price, not doc_id, category, brand; name them as this",
        ),
        (
            "doc_id,title,category,brand",
            "has the columns doc_id, title, category, brand, not price; name them",
        ),
    ]:
        (tmp_path / "new.csv").write_text(f"{header}\n{','.join('1' * len(header.split(',')))}\n")
        code, told, _ = run("update", store.root, "--documents", tmp_path / "new.csv")
        assert code == 3
        assert told.splitlines()[-1].startswith(f"twotower: new.csv {said}")
        assert "it needs doc_id, category, brand, price, and may have title, text, image, updated_at" in told
        assert "map" not in told


def test_documents_are_added_replaced_and_deleted_from_the_command_line(
    store: Store, tmp_path: Path, make_evaluation
):
    first = store.bundle_ids()[0]
    catalogue = pd.read_parquet(store.bundles / first / "documents.parquet")
    learnt = ["content_key", "impressions", "clicks", "ctr", "sampling_probability", "cold"]
    rows = catalogue.drop(columns=learnt).head(2).copy()
    rows["doc_id"] = [catalogue["doc_id"][0], "new/ü"]
    rows["title"] = ["a xylophone of glass", "a xylophone of brass"]
    rows.to_json(tmp_path / "changes.jsonl", orient="records", lines=True, date_format="iso")
    gone = catalogue["doc_id"].tolist()[2:5]
    (tmp_path / "gone.txt").write_text(f"{gone[0]}\r\n{gone[1]}\n\n", encoding="utf-8")
    changes = ("--documents", tmp_path / "changes.jsonl", "--delete", f"@{tmp_path / 'gone.txt'}")
    code, said, told = run("update", store.root, *changes, "--delete", gone[2])
    assert code == 0, said
    assert (told["added"], told["updated"], told["deleted"], told["tombstones"]) == (1, 1, 3, 4)
    assert (told["parent"], told["promoted"], told["ann_recall"]["split"]) == (first, False, "test")
    assert store.champion().bundle_id == first
    code, said, told = run("update", store.root, "--bundle", told["bundle"], "--delete", "new/ü", "--promote")
    assert code == 0, said
    assert store.champion().bundle_id == told["bundle"]
    assert "0 added, 0 updated, 1 deleted" in store.champion().reason
    bundle = load(store.bundle(told["bundle"]).path)
    assert {*gone, "new/ü"}.isdisjoint(bundle.doc_ids)
    assert bundle.documents["title"][bundle.rows[rows["doc_id"][0]]] == "a xylophone of glass"
    listed = {entry["bundle_id"]: entry["note"] for entry in run("bundles", store.root)[2]["bundles"]}
    assert listed[first] is None
    assert f"measured on bundle {first}" in listed[told["bundle"]]

    make_evaluation(store.root.parent / "evaluation", {"towers": 0.5})
    decision = promote(
        store.root, first, store.root.parent / "evaluation", "nDCG@10", PromoteConfig(require_beats=[])
    )
    assert not decision.promoted  # a later run of the same export must not undo the changes
    assert f"champion {told['bundle']} is an update of it" in decision.reason


def test_vectors_of_the_champion_or_of_a_named_bundle_are_written_as_parquet(store: Store, tmp_path: Path):
    code, said, told = run("vectors", store.root, tmp_path / "vectors.parquet")
    assert code == 0, said
    bundle = store.champion().bundle_id
    table = pd.read_parquet(tmp_path / "vectors.parquet")
    assert (told["bundle"], told["vectors"]) == (bundle, len(table))
    assert len(table["vector"][0]) == told["dimension"]
    assert f"{len(table):,} vectors of bundle {bundle}" in said
    first = store.bundle_ids()[0]
    assert run("vectors", store.root, tmp_path / "first.parquet", "--bundle", first)[2]["bundle"] == first
    assert run("vectors", store.root, tmp_path / "x.parquet", "--bundle", "f" * 16)[0] == 4
    code, said, _ = run("vectors", store.root, tmp_path / "absent" / "x.parquet")
    assert code == 2
    assert "choose another file" in said


def test_a_deep_verification_compares_every_vector_of_a_bundle_and_of_its_update(
    store: Store, tmp_path: Path
):
    code, told_of, _ = run("update", store.root, "--delete", load_first(store))
    assert code == 0, told_of
    code, said, told = run("verify", store.root, "--deep")
    assert code == 0, said
    for bundle_id in store.bundle_ids():
        documents = store.bundle(bundle_id).content["documents"]
        assert f"{bundle_id} is whole, {documents} documents encoded again and compared" in said
    assert set(told["bundles"].values()) == {None}
    assert "compared" not in run("verify", store.root, store.bundle_ids()[0])[1]


def load_first(store: Store) -> str:
    """The first document that the champion has."""
    path = store.bundle_path(store.champion().bundle_id)
    return str(pd.read_parquet(path / "documents.parquet")["doc_id"][0])


def test_nothing_is_signed_that_comes_from_a_bundle_of_somebody_else(
    store: Store, make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
):
    mine, my_public = make_keys(tmp_path, "mine")
    theirs, their_public = make_keys(tmp_path, "theirs")
    parent, gone = store.champion().bundle_id, load_first(store)
    asked = ("update", store.root, "--delete", gone, "--sign", mine)
    before = store.bundle_ids()
    code, said, _ = run(*asked)
    assert code == 4, said
    assert f"bundle {parent} is refused: it is not signed" in said
    sign(store.bundle(parent), SignConfig(key=theirs))
    code, said, _ = run(*asked)
    assert code == 4, said
    assert "none of the 1 trusted keys signed its manifest.json" in said
    assert store.bundle_ids() == before
    code, said, told = run(*asked, "--trusted-key", their_public)
    assert code == 0, said
    assert Store(store.root, (my_public,)).bundle(told["bundle"])
    code, said, unsigned = run("update", store.root, "--bundle", told["bundle"], "--delete", last_of(store))
    assert code == 0, said
    assert f"warning: {told['bundle']} is signed and {unsigned['bundle']} is not; servers with" in said
    code, said, told = run(
        "update", store.root, "--bundle", told["bundle"], "--delete", last_of(store), "--sign", mine
    )
    assert code == 0, said
    assert Store(store.root, (my_public,)).bundle(told["bundle"])


def test_an_update_that_is_made_again_does_not_undo_a_rollback(store: Store):
    first = store.champion().bundle_id
    asked = ("update", store.root, "--bundle", first, "--delete", load_first(store), "--promote")
    code, said, told = run(*asked)
    assert (code, told["promoted"]) == (0, True), said
    assert run("rollback", store.root)[2]["bundle"] == first
    code, said, told = run(*asked)
    assert (code, told["promoted"]) == (5, False)
    assert f"`twotower rollback {store.root} --to {told['bundle']}` takes it all the same" in said
    assert store.champion().bundle_id == first
    code, said, _ = run("rollback", store.root, "--to", told["bundle"])
    assert code == 0, said
    assert store.champion().bundle_id == told["bundle"]
    store.set_champion(first, "as before")


def last_of(store: Store) -> str:
    """The last document that the champion has."""
    path = store.bundle_path(store.champion().bundle_id)
    return str(pd.read_parquet(path / "documents.parquet")["doc_id"].iloc[-1])
