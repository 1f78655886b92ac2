import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.artifact import MANIFEST, Artifact, publish, write_json
from features.errors import ArtifactError, BundleError, ConfigError
from features.text import NORMALISER
from serving.build import IndexConfig
from serving.bundle import Bundle, load
from serving.export import export
from serving.retriever import Retriever


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """The shop's bundle, to be damaged."""
    return Path(shutil.copytree(bundle.artifact.path, tmp_path / bundle.bundle_id))


def rehashed(path: Path, change: Callable[[Path, dict], None]) -> Path:
    """Change a bundle and give it a manifest that agrees with the change, as only an insider could."""
    content = dict(Artifact.read(path).content)
    target = path.parent / "rehashed"
    with publish(target, "bundle", content) as staging:
        shutil.copytree(path, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        change(staging, content)
    return target.rename(path.parent / Artifact.read(target).digest[:16])


def test_the_directory_is_named_by_the_digest_and_nothing_else_is_left(bundle: Bundle):
    path = bundle.artifact.path
    assert path.name == bundle.bundle_id == Artifact.read(path, "bundle").digest[:16]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert {
        "query",
        "document",
        "two_tower.json",
        "index",
        "ids.json",
        "documents.parquet",
        "manifest.json",
    } == {entry.name for entry in path.iterdir()}


def test_the_manifest_says_what_a_reader_must_know(bundle: Bundle, make):
    content = bundle.artifact.content
    assert content["text_normaliser"] == NORMALISER
    assert (content["similarity"], content["unit_length"], content["dimension"]) == ("cosine", True, 16)
    assert content["documents"] == len(make.catalogue())
    assert (content["query_inputs"], content["exclude_seen"]) == (["text"], False)
    assert content["index"]["factory"] == "Flat"
    assert content["index"]["ann_recall"] == {
        "k": 5,
        "value": 1.0,
        "queries": 8,
        "split": "test",
        "target": None,
        "target_met_when_tuned": None,
    }
    assert content["examples"]["digest"]
    assert content["checkpoint"]["digest"]
    assert content["data_window"]["train_first"] == "2026-01-01T00:00:00+00:00"
    assert content["data_window"]["test_last"] == "2026-01-05T07:00:00+00:00"
    assert {"python", "torch", "numpy", "twotower"} <= content["versions"].keys()
    assert content["faiss"]["version"]
    assert len(content["canaries"]) >= 8
    assert all(len(canary["exact"]) == 10 for canary in content["canaries"])


def test_canaries_hold_the_exact_neighbours(bundle: Bundle):
    for canary in bundle.artifact.content["canaries"]:
        hits = Retriever(bundle).search(canary["query"]["text"], k=10)
        assert [hit["doc_id"] for hit in canary["exact"]] == [hit.doc_id for hit in hits]


def test_exporting_the_same_again_gives_the_same_bundle(shop: Path):
    before = sorted(entry.name for entry in (shop / "bundles").iterdir())
    again = export(shop / "examples", shop / "checkpoints" / "0", None, shop / "bundles", IndexConfig(k=5))
    assert [again.path.name] == before == sorted(entry.name for entry in (shop / "bundles").iterdir())


def test_exporting_again_repairs_a_damaged_bundle(tmp_path, make):
    path = make.shop(tmp_path).path
    (path / "ids.json").write_text("[]")
    again = export(
        tmp_path / "examples", tmp_path / "checkpoints" / "0", None, tmp_path / "bundles", IndexConfig(k=5)
    )
    assert again.path == path
    assert load(path).bundle_id == path.name


def test_a_tuned_index_comes_back_with_its_search_parameters(tmp_path, make):
    config = IndexConfig(factory="IVF4,Flat", k=5, target_recall=1.0)
    artifact = make.shop(tmp_path, index=config)
    nprobe = artifact.content["index"]["search"]["nprobe"]
    assert nprobe > 1
    loaded = load(artifact.path)
    flat = load(make.shop(tmp_path / "flat").path)
    for text in ("red shoes", "tea kettle"):
        assert {hit.doc_id for hit in Retriever(loaded).search(text, k=5)} == {
            hit.doc_id for hit in Retriever(flat).search(text, k=5)
        }


def test_one_flipped_byte_in_any_file_is_refused_in_one_line(copied: Path):
    files = [file for file in sorted(copied.rglob("*")) if file.is_file()]
    assert len(files) >= 8
    for file in files:
        sound = file.read_bytes()
        for place in {0, len(sound) // 2, len(sound) - 2}:
            file.write_bytes(sound[:place] + bytes([sound[place] ^ 0x15]) + sound[place + 1 :])
            with pytest.raises(BundleError) as caught:
                load(copied)
            assert "\n" not in str(caught.value)
        file.write_bytes(sound)
    assert load(copied).bundle_id == copied.name


def test_a_truncated_or_missing_file_is_refused(copied: Path):
    for file in [file for file in sorted(copied.rglob("*")) if file.is_file()]:
        sound = file.read_bytes()
        file.write_bytes(sound[: len(sound) // 2])
        with pytest.raises(BundleError):
            load(copied)
        file.unlink()
        with pytest.raises(BundleError):
            load(copied)
        file.write_bytes(sound)


def test_a_directory_with_another_name_is_refused(copied: Path):
    with pytest.raises(BundleError, match="carries its id"):
        load(copied.rename(copied.parent / ("0" * 16)))


def test_a_folder_that_is_no_bundle_is_refused(shop: Path, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", shop / "examples"):
        with pytest.raises(BundleError, match="refused"):
            load(path)


def test_another_models_query_tower_is_caught_by_the_canaries(copied: Path, shop: Path, tmp_path, make):
    make.checkpoint(tmp_path / "other", shop / "examples", make.towers_config(), seed=5)

    def swap(staging: Path, content: dict) -> None:
        shutil.rmtree(staging / "query")
        shutil.copytree(tmp_path / "other" / "two_tower" / "query", staging / "query")

    with pytest.raises(BundleError, match="canary query 0"):
        load(rehashed(copied, swap))


def test_another_catalogue_under_the_same_ids_is_caught_by_the_canaries(copied: Path):
    def swap(staging: Path, content: dict) -> None:
        documents = pd.read_parquet(staging / "documents.parquet")
        documents[["title", "text"]] = documents[["title", "text"]].to_numpy()[::-1]
        documents.to_parquet(staging / "documents.parquet")

    with pytest.raises(BundleError, match="recorded scores from the towers"):
        load(rehashed(copied, swap))


def test_a_catalogue_that_bm25_cannot_read_is_refused(copied: Path):
    def spoil(staging: Path, content: dict) -> None:
        for one in content["canaries"]:
            del one["exact"][1:]
        asked = {one["exact"][0]["doc_id"] for one in content["canaries"]}
        documents = pd.read_parquet(staging / "documents.parquet")
        documents.loc[documents.index[~documents["doc_id"].isin(asked)][0], "title"] = None
        documents.to_parquet(staging / "documents.parquet")

    with pytest.raises(BundleError, match="its catalogue: AttributeError"):
        load(rehashed(copied, spoil))


def test_only_timings_may_be_left_out_of_the_digest(copied: Path):
    (copied / "query.onnx").write_bytes(b"")
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["files"]["query.onnx"] = {
        "sha256": hashlib.sha256(b"").hexdigest(),
        "bytes": 0,
        "measured": True,
    }
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert Artifact.read(copied, verify=True).digest.startswith(copied.name)
    with pytest.raises(BundleError, match=r"leaves query\.onnx out of the digest"):
        load(copied)


@pytest.mark.parametrize("stage", ["examples", "checkpoint"])
def test_inputs_that_change_during_an_export_publish_nothing(shop: Path, tmp_path, stage):
    for name in ("examples", "checkpoint"):
        source = shop / "examples" if name == "examples" else shop / "checkpoints" / "0"
        shutil.copytree(source, tmp_path / name)
    changed = tmp_path / stage / ("documents.parquet" if stage == "examples" else "two_tower/two_tower.json")

    def touch(done: int, total: int) -> None:
        changed.write_bytes(changed.read_bytes())

    with pytest.raises(ArtifactError, match="changed while it was being read"):
        export(
            tmp_path / "examples",
            tmp_path / "checkpoint",
            None,
            tmp_path / "out",
            IndexConfig(k=5),
            progress=touch,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_ids_in_another_order_are_refused(copied: Path):
    def swap(staging: Path, content: dict) -> None:
        ids = json.loads((staging / "ids.json").read_text())
        write_json(staging / "ids.json", ids[::-1])

    with pytest.raises(BundleError, match="same documents in the same order"):
        load(rehashed(copied, swap))


def test_a_catalogue_without_a_column_that_the_towers_read_is_refused(copied: Path):
    def drop(staging: Path, content: dict) -> None:
        pd.read_parquet(staging / "documents.parquet").drop(columns="clicks").to_parquet(
            staging / "documents.parquet"
        )

    with pytest.raises(BundleError, match=r"refused: .*'clicks'"):
        load(rehashed(copied, drop))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text_normaliser", "other-9", "text normaliser 'other-9'"),
        ("similarity", "dot", "score by cosine"),
        ("dimension", 17, "differ in dimension"),
        ("documents", 5, "vectors for"),
        ("canaries", [], "no canary"),
        ("canaries", [{"query": {}}], "refused"),
        ("canaries", "nonsense", "refused"),
        ("index", {"search": {"nprobe": 3}}, "nprobe"),
    ],
)
def test_a_manifest_that_disagrees_with_the_parts_is_refused(copied: Path, key, value, said):
    path = rehashed(copied, lambda _, content: content.update({key: value}))
    with pytest.raises(BundleError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_evaluation_of_this_checkpoint_is_kept_and_of_another_refused(shop: Path, tmp_path):
    rows = [
        {"system": "towers", "slice": "all", "metric": "R@10", "value": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    ]
    checkpoint = Artifact.read(shop / "checkpoints" / "0")
    for name, digest in (("right", checkpoint.digest), ("wrong", "f" * 64)):
        content = {"examples": Artifact.read(shop / "examples").digest, "checkpoint": digest}
        with publish(tmp_path / name, "evaluation", content) as staging:
            write_json(staging / "evaluation.json", {"evaluation": rows, "paired": []})
    inputs = (shop / "examples", checkpoint.path)
    kept = export(*inputs, tmp_path / "right", tmp_path / "bundles", IndexConfig(k=5))
    assert kept.content["evaluation"] == rows
    with pytest.raises(ArtifactError, match="not of the checkpoint"):
        export(*inputs, tmp_path / "wrong", tmp_path / "bundles", IndexConfig(k=5))


def test_a_failed_export_publishes_nothing(shop: Path, tmp_path):
    with pytest.raises(ConfigError, match="4096"):
        export(
            shop / "examples",
            shop / "checkpoints" / "0",
            None,
            tmp_path / "b",
            IndexConfig(factory="IVF4096,Flat"),
        )
    assert not (tmp_path / "b").exists()


def test_a_weight_that_is_not_finite_fails_the_export_by_document(shop: Path, tmp_path):
    documents = pd.read_parquet(shop / "examples" / "documents.parquet")
    with publish(tmp_path / "checkpoint", "checkpoint", {}) as staging:
        towers = load(next((shop / "bundles").iterdir())).towers
        towers.document.projector.bias.data[0] = float("nan")
        towers.save(staging / "two_tower")
    with pytest.raises(
        BundleError, match=f"document '{documents['doc_id'][0]}' has a vector that is not finite"
    ):
        export(shop / "examples", tmp_path / "checkpoint", None, tmp_path / "b", IndexConfig())
    assert not (tmp_path / "b").exists()


def test_one_document_makes_a_bundle_and_none_is_refused(tmp_path, make):
    one = make.catalogue().iloc[[3]].reset_index(drop=True)
    make.examples(tmp_path / "one", documents=one)
    make.checkpoint(tmp_path / "checkpoint", tmp_path / "one", make.towers_config())
    exported = export(tmp_path / "one", tmp_path / "checkpoint", None, tmp_path / "bundles", IndexConfig())
    hits = Retriever(load(exported.path)).search("red", k=10)
    assert [hit.doc_id for hit in hits] == [one["doc_id"][0]]
    assert np.isfinite(hits[0].score)
    make.examples(tmp_path / "none", documents=one.iloc[:0])
    with pytest.raises(BundleError, match="no documents"):
        export(tmp_path / "none", tmp_path / "checkpoint", None, tmp_path / "bundles", IndexConfig())


def test_dot_towers_are_exported_as_they_are(shop: Path, tmp_path, make):
    make.checkpoint(tmp_path / "dot", shop / "examples", make.towers_config(similarity="dot"))
    exported = export(shop / "examples", tmp_path / "dot", None, tmp_path / "bundles", IndexConfig(k=5))
    assert exported.content["unit_length"] is False
    assert load(exported.path).bundle_id == exported.path.name
