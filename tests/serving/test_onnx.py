"""The query tower's graph gives the tower's answers; int8 is served only where it is measured as good."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from features.artifact import Artifact, publish
from features.errors import BundleError, ConfigError
from features.text import normalise
from serving.build import IndexConfig
from serving.bundle import load, load_towers, open_query_encoder
from serving.encode import QueryEncoder, columns_of, encode_documents, encode_queries
from serving.export import export
from serving.graph_choice import Judged, choose_form
from serving.onnx import write_graph
from serving.retriever import Retriever
from serving.search import Query
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

TEXTS = ["red shoes", "a wool scarf of many colours and a very long description of it", "茶壶", "x", ""]
TOWER = {
    "kind": "text",
    "architecture": {"vocabulary": 400, "layers": 1, "hidden": 32, "heads": 2, "intermediate": 64},
    "max_length": 16,
    "prefix": "query: ",
}


def towers_of(make: SimpleNamespace, similarity: str = "cosine", **tower: object) -> TwoTower:
    config = TowersConfig.model_validate(
        {
            "dimension": 16,
            "similarity": similarity,
            "shared": False,
            "query": TOWER | tower,
            "document": TOWER,
        }
    )
    torch.manual_seed(0)
    texts = pd.DataFrame({"query_text": [normalise(text) for text in TEXTS]})
    return build_two_tower(config, make.catalogue(), texts).eval()


def judged(towers: TwoTower, make: SimpleNamespace, queries: int) -> Judged:
    """Queries whose relevant documents are those that the towers themselves find."""
    documents = make.catalogue()
    document_ND = encode_documents(towers, documents)
    texts = [f"{documents['title'].iat[row % len(documents)]} {row}" for row in range(queries)]
    query_QD = encode_queries(towers, pd.DataFrame(columns_of([Query(text) for text in texts])))
    best = np.argsort(-(query_QD @ document_ND.T), axis=1, kind="stable")[:, :10]
    doc_ids = documents["doc_id"].tolist()
    relevant = [[doc_ids[row] for row in rows] for rows in best]
    frame = pd.DataFrame({"query_text": texts, "history": [[]] * queries, "relevant_doc_ids": relevant})
    return Judged(frame, doc_ids, document_ND)


@pytest.mark.parametrize(("pooling", "similarity"), [("mean", "cosine"), ("cls", "dot"), ("max", "cosine")])
def test_a_graph_gives_the_towers_vectors_whatever_the_lengths(
    make: SimpleNamespace, tmp_path: Path, pooling: str, similarity: str
):
    towers = towers_of(make, similarity, pooling=pooling)
    write_graph(towers, tmp_path / "query.onnx", "float32")
    graph = open_query_encoder(tmp_path, towers)
    assert (graph.note, QueryEncoder(towers).note) == ("ONNX", "torch")
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:3]):
        asked = [Query(text) for text in texts]
        expected = encode_queries(towers, pd.DataFrame(columns_of(asked)))
        np.testing.assert_allclose(graph.encode(asked), expected, atol=1e-5, rtol=1e-5)


def test_equal_towers_give_equal_graphs(make: SimpleNamespace, tmp_path: Path):
    for name in ("a.onnx", "b.onnx"):
        write_graph(towers_of(make), tmp_path / name, "int8")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_graphs_vector_does_not_depend_on_its_batch_mates(
    make: SimpleNamespace, tmp_path: Path, precision: str
):
    towers = towers_of(make)
    write_graph(towers, tmp_path / "query.onnx", precision)
    together = open_query_encoder(tmp_path, towers).encode([Query(text) for text in TEXTS])
    for text, vector in zip(TEXTS, together, strict=True):
        alone = open_query_encoder(tmp_path, towers).encode([Query(text)])[0]
        np.testing.assert_allclose(alone, vector, atol=1e-6)


def test_int8_is_taken_only_where_what_is_found_is_as_good(make: SimpleNamespace, monkeypatch):
    towers = towers_of(make)
    on = judged(towers, make, 250)
    form = choose_form(towers, "auto", on)
    measured = form.facts["int8"]
    assert measured["queries"] == 250
    assert form.facts["kind"] == ("int8" if measured["low"] >= -0.002 else "float32")
    monkeypatch.setattr("serving.graph_choice.EQUAL_WITHIN", -1.0)  # nothing is better by a whole nDCG
    assert choose_form(towers, "auto", on).facts["kind"] == "float32"
    with pytest.raises(ConfigError, match=r"int8 changes nDCG@10 by .* on 250 validation queries"):
        choose_form(towers, "int8", on)
    monkeypatch.setattr("serving.graph_choice.EQUAL_WITHIN", 1.0)
    form = choose_form(towers, "auto", on)
    assert form.facts["kind"] == "int8"
    assert form.graph is not None
    assert len(form.graph) < len(choose_form(towers, "float32", on).graph or b"")


def test_too_few_validation_queries_cannot_speak_for_int8(make: SimpleNamespace):
    towers = towers_of(make)
    assert choose_form(towers, "auto", judged(towers, make, 20)).facts == {"kind": "float32"}
    assert choose_form(towers, "off", judged(towers, make, 20)).graph is None


def test_a_feature_tower_encodes_by_itself_and_cannot_be_made_a_graph(make: SimpleNamespace, bundle):
    empty = Judged(pd.DataFrame(), [], np.empty((0, 16), np.float32))
    assert choose_form(bundle.towers, "auto", empty).facts == {"kind": "torch"}
    with pytest.raises(ConfigError, match="only a text tower"):
        choose_form(bundle.towers, "float32", empty)


def exported(make: SimpleNamespace, root: Path, setting: str) -> Path:
    make.examples(root / "examples")
    config = TowersConfig.model_validate({"dimension": 16, "query": TOWER, "document": TOWER})
    make.checkpoint(root / "checkpoint", root / "examples", config)
    index = IndexConfig.model_validate({"k": 5, "query_onnx": setting})
    return export(root / "examples", root / "checkpoint", None, root / "bundles", index).path


def test_a_bundle_with_a_graph_answers_as_one_without(make: SimpleNamespace, tmp_path: Path):
    by_graph = load(exported(make, tmp_path, "auto"))
    by_tower = load(exported(make, tmp_path / "off", "off"))
    assert (by_graph.query_encoder.note, by_tower.query_encoder.note) == ("ONNX", "torch")
    assert by_graph.artifact.content["query_encoder"] == {"kind": "float32"}
    for text in TEXTS[:4]:
        ids = [[hit.doc_id for hit in Retriever(one).search(text, k=5)] for one in (by_graph, by_tower)]
        assert ids[0] == ids[1]


def test_a_graph_of_other_towers_is_caught_by_the_canaries(make: SimpleNamespace, tmp_path: Path):
    path = exported(make, tmp_path, "float32")
    other = load_towers(path)
    torch.nn.init.normal_(other.query.projector.weight)
    with publish(tmp_path / "mixed", "bundle", dict(Artifact.read(path).content)) as staging:
        shutil.copytree(path, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        write_graph(other, staging / "query.onnx", "float32")
    mixed = (tmp_path / "mixed").rename(tmp_path / Artifact.read(tmp_path / "mixed").digest[:16])
    with pytest.raises(BundleError, match="canary"):
        load(mixed)


def test_the_last_queries_are_kept_and_the_oldest_forgotten(bundle):
    encoder = QueryEncoder(bundle.towers, kept=2)
    first = encoder.encode([Query("red shoes"), Query("red shoes"), Query("blue scarf")])
    assert (encoder.hits, encoder.misses) == (0, 3)
    np.testing.assert_array_equal(first[0], first[1])
    again = encoder.encode([Query("red shoes")])
    assert (encoder.hits, encoder.misses) == (1, 3)
    np.testing.assert_array_equal(again[0], first[0])
    encoder.encode([Query("tea kettle")])  # forgets the one that was used longest ago
    encoder.encode([Query("blue scarf")])
    assert (encoder.hits, encoder.misses) == (1, 5)
    nothing_kept = QueryEncoder(bundle.towers, kept=0)
    nothing_kept.encode([Query("red shoes")])
    nothing_kept.encode([Query("red shoes")])
    assert nothing_kept.hits == 0
    assert nothing_kept.encode([]).shape == (0, 16)
