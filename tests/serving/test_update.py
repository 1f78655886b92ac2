import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.changes import read_changes, with_statistics
from features.errors import BundleError, SchemaError
from serving import index as index_module
from serving.build import IndexConfig, build
from serving.bundle import Bundle, load
from serving.encode import encode_documents
from serving.export import export
from serving.filters import Selection
from serving.index import read
from serving.retriever import Retriever
from serving.update import Changes, UpdateConfig, plan_changes, row_ids, update
from towers.two_tower import TowersConfig

D = 8
ODD = [
    "a/b",
    "../c",
    "quo\"te'",
    "ü 茶壶 🍵",
    "line\nbreak",
    "null",
    "",
    " ",
    "x" * 2_000,
    "\u202eevil",
    "0",
    "%2F",
]


class Shadow:
    """An index under updates, and the dictionary that it must agree with."""

    def __init__(self, factory: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.config = IndexConfig(factory=factory, device="cpu")
        self.truth = {f"{name}{row}": self.vector() for row in range(8) for name in ODD}
        self.catalogue = pa.table({"doc_id": list(self.truth)})
        self.rebuilt = 0
        self.build()

    def vector(self) -> np.ndarray:
        found = self.random.normal(size=D).astype(np.float32)
        return found / np.linalg.norm(found)

    def build(self) -> None:
        """Build anew from what the index itself holds, as an update does."""
        vectors = np.stack(list(self.truth.values()))
        if self.rebuilt:
            vectors = self.index.vectors(np.arange(self.index.size))
        self.index = build(vectors, self.config, "cosine")
        if self.index.tunable:
            self.index.set_parameters({self.index.tunable: 256 if self.index.tunable == "efSearch" else 4})
        if "RFlat" in str(self.config.factory):
            self.index.set_parameters({"k_factor_rf": 64})
        self.rebuilt += 1

    def change(self) -> int:
        """Change some documents, and return how many."""
        living = list(self.truth)
        count = int(self.random.integers(1, 8))
        kind = self.random.choice(["add", "update", "delete", "all"])
        fresh = [f"{self.random.choice(ODD)}{self.random.integers(1_000_000)}" for _ in range(count)]
        old = [living[row] for row in self.random.permutation(len(living))[: 2 * count]]
        upserts = {"add": fresh, "update": old[:count], "delete": [], "all": [*fresh, *old[:count]]}[kind]
        upserts = list(dict.fromkeys(upserts))
        deleted = old[count:] if kind in ("delete", "all") and len(living) > 60 else []
        if not upserts and not deleted:
            return 0
        plan = plan_changes(self.catalogue, Changes(pa.table({"doc_id": upserts}), deleted))
        vectors = {doc_id: self.vector() for doc_id in upserts}
        self.index.replace(plan.dead, np.array(list(vectors.values()), np.float32).reshape(-1, D))
        self.catalogue = plan.documents
        self.truth = {k: v for k, v in self.truth.items() if k not in deleted} | vectors
        if self.index.tombstones > 0.2 * len(self.index._place_of_row):
            self.build()
        return len(upserts) + len(deleted)

    def check(self) -> float:
        """Search, hold every result against the dictionary, and return the share of the nearest found."""
        doc_ids = self.catalogue["doc_id"].to_pylist()
        assert sorted(doc_ids) == sorted(self.truth)
        assert [doc_id for doc_id in row_ids(self.index, doc_ids) if doc_id is not None] == doc_ids
        allowed = self.random.random(len(doc_ids)) < self.random.choice([1.1, 0.7, 0.1])
        query, k = self.vector(), 10
        selection = None if allowed.all() else Selection.of(allowed)
        found = self.index.search(query[None], k, selection)[0]
        names = [doc_ids[row] for row in found.rows]
        assert allowed[found.rows].all()
        assert len(set(names)) == len(names)
        np.testing.assert_allclose(found.scores, [self.truth[name] @ query for name in names], atol=1e-5)
        exact = sorted((-float(self.truth[d] @ query), d) for d, a in zip(doc_ids, allowed, strict=True) if a)
        wanted = {doc_id for _, doc_id in exact[:k]}
        return len(wanted & set(names)) / max(1, len(wanted))


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "IVF4,PQ4x4fsr,RFlat"])
def test_ten_thousand_random_changes_give_no_wrong_deleted_or_stale_document(factory, monkeypatch):
    monkeypatch.setattr(index_module, "_EXHAUSTIVE_ROWS", 0)  # so that the index searches, not the scan
    shadow, changed, shares = Shadow(factory, 1), 0, []
    while changed < 2_500:  # times four families
        changed += shadow.change()
        shares.append(shadow.check())
    assert shadow.rebuilt > 10
    assert np.mean(shares) == 1.0 if factory in ("Flat", "IVF4,Flat") else np.mean(shares) > 0.99


def test_a_tombstone_survives_writing_and_reading(tmp_path):
    vectors = np.eye(D, dtype=np.float32)
    index = build(vectors, IndexConfig(factory="HNSW8"), "cosine")
    index.replace(np.array([0, 3]), vectors[:1])
    assert (index.size, index.tombstones) == (7, 2)
    index.write(tmp_path / "index.faiss")
    again = read(tmp_path / "index.faiss", alive=index.alive)
    for one in (index, again):
        assert one.search(vectors[:1], 9)[0].rows.tolist()[0] == 6  # the new one, in the seventh place
        assert sorted(one.search(vectors[3:4], 9)[0].rows.tolist()) == list(range(7))
    np.testing.assert_array_equal(again.vectors(np.array([0, 6])), vectors[[1, 0]])
    with pytest.raises(BundleError, match="ids for 8 vectors; the index has 9"):
        read(tmp_path / "index.faiss", alive=np.ones(8, dtype=bool))


def test_an_index_with_tombstones_takes_no_vector_that_is_not_finite():
    index = build(np.eye(D, dtype=np.float32), IndexConfig(), "cosine")
    with pytest.raises(ValueError, match="not finite"):
        index.replace(np.array([0]), np.full((1, D), np.nan, np.float32))
    assert (index.size, index.tombstones) == (8, 0)


def changes(bundle_path: Path, rows: dict[str, str], deleted: tuple[str, ...] = ()) -> Changes:
    catalogue = pq.read_table(bundle_path / "documents.parquet")
    table = pa.table(
        {
            "doc_id": list(rows),
            "title": list(rows.values()),
            "text": [""] * len(rows),
            "image": pa.nulls(len(rows), pa.string()),
            "updated_at": pa.nulls(len(rows), pa.timestamp("us", tz="UTC")),
        }
    )
    return Changes(with_statistics(table, catalogue) if rows else None, deleted)


def held(bundle: Bundle) -> None:
    """Every vector is that of its document, and nothing else is found."""
    encoded = encode_documents(bundle.towers, bundle.documents)
    np.testing.assert_allclose(bundle.index.vectors(np.arange(len(encoded))), encoded, atol=1e-5)
    retriever = Retriever(bundle)
    for row, doc_id in enumerate(bundle.doc_ids):
        found = bundle.index.search(encoded[row : row + 1], 3)[0]
        assert found.scores[0] == pytest.approx(1.0, abs=1e-4)
        assert bundle.rows[doc_id] == row
    assert {hit.doc_id for hit in retriever.search("red shoes", k=50)} == set(bundle.doc_ids)


@pytest.mark.parametrize("factory", [pytest.param("Flat", marks=pytest.mark.slow), "HNSW8"])
def test_bundles_follow_one_another_as_documents_change(factory, make, tmp_path):
    first = make.shop(tmp_path, index=IndexConfig(k=5, factory=factory)).path
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    many = tuple(f"d{row:02d}" for row in range(6, 15))
    steps = [
        changes(first, {"a/new ü\"'": "golden teapot", "x" * 900: "long", "d00": "another"}, ("d05",)),
        changes(first, {"d05": "blue kettle"}, (*many, "a/new ü\"'")),
    ]
    path, tombstones = first, []
    for step in steps:
        artifact = update(path, tmp_path / "bundles", step, UpdateConfig())
        bundle = load(artifact.path)
        content = bundle.artifact.content
        assert (content["update"]["parent"], content["update"]["exported"]) == (path.name, first.name)
        assert content["documents"] == len(bundle.doc_ids)
        held(bundle)
        tombstones.append(json.loads((artifact.path / "ids.json").read_text()).count(None))
        assert content["update"]["tombstones"] == tombstones[-1]
        path = artifact.path
    assert tombstones == [2, 0]  # the second would be too many, so the index was built again
    assert {"d05", "d00", "x" * 900} <= set(bundle.doc_ids)
    assert {"d06", "a/new ü\"'"}.isdisjoint(bundle.doc_ids)
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before


def test_a_new_document_is_cold_and_a_changed_one_keeps_its_clicks(bundle):
    catalogue = pq.read_table(bundle.artifact.path / "documents.parquet")
    rows = changes(bundle.artifact.path, {"d07": "other words", "new": "words"}).documents.to_pylist()
    known = catalogue.to_pylist()[bundle.rows["d07"]]
    assert {name: rows[0][name] for name in ("impressions", "clicks", "ctr", "cold")} == {
        name: known[name] for name in ("impressions", "clicks", "ctr", "cold")
    }
    assert rows[0]["content_key"] != known["content_key"]
    assert (rows[1]["impressions"], rows[1]["clicks"], rows[1]["cold"]) == (0, 0, True)
    shown = catalogue.to_pandas()
    assert rows[1]["ctr"] == pytest.approx(shown["clicks"].sum() / shown["impressions"].sum())


@pytest.mark.parametrize(
    ("given", "deleted", "said"),
    [
        ([], [], "nothing to change"),
        ([], ["nobody", "a"], "'nobody' is to be deleted, but the bundle has no such document"),
        (["a"], ["a"], "'a' is both given and deleted"),
        ([], ["a", "a"], "'a' is given twice"),
        (["c", "b", "c"], [], "'c' is given twice"),
        ([], ["b", "a"], "no document would be left"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(given, deleted, said):
    documents = pa.table({"doc_id": pa.array(given, pa.string())})
    with pytest.raises(SchemaError, match=said):
        plan_changes(pa.table({"doc_id": ["a", "b"]}), Changes(documents, deleted))


def test_a_refused_change_publishes_nothing(bundle, tmp_path):
    with pytest.raises(SchemaError, match="no such document"):
        update(bundle.artifact.path, tmp_path, Changes(None, ["nobody"]), UpdateConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_document_with_a_number_that_is_not_finite_publishes_nothing(make, tmp_path):
    make.examples(tmp_path / "examples")
    config = make.towers_config().model_dump()
    config["document"]["popularity"] = [{"column": "ctr"}]
    make.checkpoint(tmp_path / "checkpoint", tmp_path / "examples", TowersConfig.model_validate(config))
    bundles = tmp_path / "bundles"
    first = export(tmp_path / "examples", tmp_path / "checkpoint", None, bundles, IndexConfig(k=5)).path
    rows = changes(first, {"new": "words"}).documents
    place = rows.column_names.index("ctr")
    monstrous = Changes(rows.set_column(place, "ctr", pa.array([float("inf")])))
    with pytest.raises(SchemaError, match="document 'new' holds inf"):
        update(first, bundles, monstrous, UpdateConfig())
    assert [entry.name for entry in bundles.iterdir()] == [first.name]


def test_a_file_of_changes_becomes_rows_of_the_catalogue(bundle, tmp_path):
    catalogue = pq.read_table(bundle.artifact.path / "documents.parquet")
    prices = pa.array([1.5] * len(catalogue))
    catalogue = catalogue.append_column("price", prices).append_column(
        "tags", pa.array([["a"]] * len(catalogue), pa.list_(pa.string()))
    )
    file = tmp_path / "changes.jsonl"
    lines = [
        {"doc_id": "z/1", "title": "GrÃ¼n", "text": "t", "price": "2.5", "tags": ["x", "y"]},
        {"doc_id": "d01", "title": "second", "text": None, "price": None, "tags": []},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = read_changes(file, catalogue)
    assert rows.column_names == catalogue.column_names
    assert rows["doc_id"].to_pylist() == ["d01", "z/1"]
    assert rows["title"].to_pylist() == ["second", "Grün"]  # repaired as ingestion repairs it
    assert rows["price"].to_pylist() == [None, 2.5]
    assert rows["tags"].to_pylist() == [[], ["x", "y"]]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"doc_id": "a", "title": "x"}', '{"doc_id": "a", "title": "y"}'], "'a' twice; keep one of each"),
        (['{"title": "x"}', '{"doc_id": "b", "title": "y"}'], "row 1: missing_id"),
        (['{"doc_id": "a", "title": "x"}', "not json"], "row 2: invalid_json"),
        (['{"doc_id": "a", "title": ""}'], "empty_document"),
        (['{"doc_id": "a", "title": "x", "updated_at": "yesterday"}'], "unreadable_timestamp"),
    ],
)
def test_a_file_with_one_bad_row_is_refused(lines, said, bundle, tmp_path):
    (tmp_path / "changes.jsonl").write_text("\n".join(lines))
    with pytest.raises(SchemaError, match=said):
        read_changes(tmp_path / "changes.jsonl", pq.read_table(bundle.artifact.path / "documents.parquet"))
