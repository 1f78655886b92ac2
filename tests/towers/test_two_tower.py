import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from features.errors import ConfigError
from towers.two_tower import TEMPERATURE_RANGE, TowersConfig, TwoTower, build_two_tower

DOCUMENTS = pd.DataFrame(
    {
        "doc_id": [f"d{i}" for i in range(10)],
        "title": ["red shoe", "blue shirt", "中文 手机 😀", "", None] * 2,
        "text": ["nice leather", "cotton", "", "", None] * 2,
        "brand": ["nike", None, "puma", "a.b", "nike"] * 2,
        "tags": [["a", "b"], [], None, ["c"], np.array(["a"], dtype=object)] * 2,
        "price": [1.0, math.nan, 5.0, 7.0, 9.0] * 2,
        "clicks": [3, 0, 5, 1, 2] * 2,
        "impressions": [10] * 10,
        "ctr": [0.3, 0.01, 0.5, 0.1, 0.2] * 2,
        "cold": [False, True, False, False, False] * 2,
    }
)
QUERIES = pd.DataFrame(
    {
        "query_text": ["red shoes", "shirt", None, "手机", "", "😀"],
        "history": [
            ["d1", "d2"],
            [],
            ["not in the catalogue"],
            np.array(["d4"], dtype=object),
            None,
            ["d0", "gone"],
        ],
        "user_id": ["u1", None, "u2", "u1", "u3", "u1"],
    }
)
CATEGORIES = [{"column": "brand"}, {"column": "tags"}]
POPULARITY = [{"column": "clicks", "transform": "log1p"}, {"column": "ctr", "transform": "logit"}]
TEXT = {"word_buckets": 512, "ngram_buckets": 512, "width": 16}
EVERYTHING = {
    "dimension": 24,
    "query": {
        "kind": "features",
        "text": TEXT,
        "id": {},
        "history": {
            "text": TEXT,
            "id": {},
            "categories": CATEGORIES,
            "numbers": [{"column": "price"}],
            "decay": 0.9,
        },
        "constant": True,
    },
    "document": {
        "kind": "features",
        "text": TEXT,
        "id": {},
        "categories": CATEGORIES,
        "numbers": [{"column": "price", "transform": "log1p"}, {"column": "cold"}],
        "popularity": POPULARITY,
    },
}
TRANSFORMER = {
    "kind": "text",
    "max_length": 12,
    "architecture": {"layers": 1, "hidden": 16, "intermediate": 16, "vocabulary": 300},
}
BOTH_TEXT = {"dimension": 24, "query": {**TRANSFORMER, "prefix": "query: "}, "document": TRANSFORMER}
CONFIGS = {
    "features": EVERYTHING,
    "features, nothing shared": {**EVERYTHING, "shared": False},
    "features, dot, learned temperature": {**EVERYTHING, "similarity": "dot", "learn_temperature": True},
    "text": BOTH_TEXT,
    "text, nothing shared, dot": {**BOTH_TEXT, "shared": False, "similarity": "dot"},
    "text for queries": {**EVERYTHING, "shared": False, "query": TRANSFORMER},
    "text for documents": {**EVERYTHING, "shared": False, "document": TRANSFORMER},
}


def build(config: dict, seed: int = 0) -> TwoTower:
    torch.manual_seed(seed)
    return build_two_tower(TowersConfig.model_validate(config), DOCUMENTS, QUERIES)


@torch.no_grad()
def encode(towers: TwoTower) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        towers.encode_queries(towers.prepare_queries(QUERIES)),
        towers.encode_documents(towers.prepare_documents(DOCUMENTS)),
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_loaded_towers_encode_bit_for_bit_like_the_saved_ones(config, tmp_path):
    towers = build(config).eval()
    with torch.no_grad():
        for parameter in towers.parameters():  # away from the start, where parts are zero
            parameter.add_(torch.randn_like(parameter) * 0.1)
    before = encode(towers)
    towers.save(tmp_path / "towers")
    loaded = TwoTower.load(tmp_path / "towers")
    after = encode(loaded)
    assert not loaded.training
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert torch.equal(towers.temperature, loaded.temperature)
    assert after[0].shape == (6, 24)
    assert after[0].dtype == torch.float32
    assert torch.isfinite(after[0]).all()
    assert torch.isfinite(after[1]).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_one_row_at_serving_time_is_prepared_like_the_whole_frame_in_training(config, tmp_path):
    towers = build(config)
    towers.save(tmp_path)
    served = TwoTower.load(tmp_path)
    queries, documents = encode(towers.eval())
    for row in range(len(QUERIES)):
        one = served.prepare_queries(QUERIES.iloc[[row]])
        whole = towers.prepare_queries(QUERIES).take(torch.tensor([row]))
        assert all(torch.equal(one.dense[name], whole.dense[name]) for name in whole.dense)
        assert all(torch.equal(one.ragged[name].values, part.values) for name, part in whole.ragged.items())
        with torch.no_grad():
            torch.testing.assert_close(served.encode_queries(one)[0], queries[row], atol=1e-5, rtol=1e-4)
    for row in range(len(DOCUMENTS)):
        with torch.no_grad():
            one = served.encode_documents(served.prepare_documents(DOCUMENTS.iloc[[row]]))
        torch.testing.assert_close(one[0], documents[row], atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_initial_weights_and_another_seed_others():
    first, again, other = (build(EVERYTHING, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("config", [EVERYTHING, BOTH_TEXT], ids=["features", "text"])
def test_shared_towers_train_one_copy_of_what_they_share_also_after_loading(config, tmp_path):
    build(config).save(tmp_path)
    towers = TwoTower.load(tmp_path)
    separate = build({**config, "shared": False})
    assert sum(p.numel() for p in towers.parameters()) < sum(p.numel() for p in separate.parameters())
    query = {id(parameter) for parameter in towers.query.parameters()}
    assert query & {id(parameter) for parameter in towers.document.parameters()}
    assert not {id(p) for p in separate.query.parameters()} & {id(p) for p in separate.document.parameters()}


def test_vectors_have_unit_length_under_cosine_only():
    for similarity, unit in (("cosine", True), ("dot", False)):
        vectors = encode(build({**EVERYTHING, "similarity": similarity}).eval())[0]
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-5) is unit


def test_a_zero_vector_under_cosine_is_finite_and_so_is_its_gradient():
    towers = build(
        {
            "dimension": 8,
            "query": {"kind": "features", "id": {}},
            "document": EVERYTHING["document"] | {"popularity": []},
        }
    )
    with torch.no_grad():
        for parameter in towers.query.parameters():
            parameter.zero_()
    vectors = towers.encode_queries(towers.prepare_queries(QUERIES))
    vectors.sum().backward()
    assert torch.equal(vectors, torch.zeros_like(vectors))
    assert all(torch.isfinite(p.grad).all() for p in towers.query.parameters() if p.grad is not None)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_popularity_alone_can_order_the_documents_the_same_way_for_every_query(similarity):
    towers = build({**EVERYTHING, "similarity": similarity}).eval()
    with torch.no_grad():
        for tower in (towers.query, towers.document):
            for name, parameter in tower.named_parameters():
                if not name.startswith(("constant", "popularity")):
                    parameter.mul_(1e-3)
        towers.document.projector.bias.fill_(0.1)  # else cosine sees one direction only
        towers.document.popularity.weight[0, 0] = 0.05  # log clicks
    queries, documents = encode(towers)
    scores = towers.score(queries, documents)
    clicks = torch.tensor(DOCUMENTS["clicks"].to_numpy())
    for row in scores:
        assert clicks[row.argsort(descending=True, stable=True)].tolist() == sorted(
            clicks.tolist(), reverse=True
        )


def test_shared_text_towers_match_words_before_any_training():
    config = {
        "dimension": 64,
        "query": {"kind": "features", "text": {}},
        "document": {"kind": "features", "text": {}},
    }
    towers = build(config).eval()
    scores = towers.score(*encode(towers))
    assert scores[0].argmax().item() in (0, 5)  # red shoes → red shoe
    assert scores[1].argmax().item() in (1, 6)
    assert scores[3].argmax().item() in (2, 7)


def test_scores_are_inner_products_in_float32_even_under_autocast():
    towers = build(EVERYTHING)
    query_BD, document_ND = torch.randn(3, 24), torch.randn(5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score_BN = towers.score(query_BD, document_ND)
    assert score_BN.dtype == torch.float32
    assert torch.allclose(score_BN, torch.einsum("bd,nd->bn", query_BD, document_ND), atol=1e-5)


def test_a_learned_temperature_starts_as_configured_and_stays_in_range_whatever_the_optimiser_does():
    towers = build({**EVERYTHING, "learn_temperature": True, "temperature": 0.07})
    assert towers.temperature.item() == pytest.approx(0.07, rel=1e-4)
    optimiser = torch.optim.SGD([towers._free_temperature], lr=1e6)
    for sign, bound in ((1, TEMPERATURE_RANGE[0]), (-1, TEMPERATURE_RANGE[1])):
        optimiser.zero_grad()
        (sign * towers.temperature.log()).backward()
        optimiser.step()
        assert towers.temperature.item() == pytest.approx(bound, rel=1e-3)
        with torch.no_grad():
            towers._free_temperature.zero_()


def test_a_fixed_temperature_is_no_parameter():
    towers = build({**EVERYTHING, "temperature": 0.07})
    assert towers.temperature.item() == pytest.approx(0.07)
    assert "_free_temperature" not in dict(towers.named_parameters())


def test_every_parameter_of_the_towers_gets_a_gradient():
    towers = build({**EVERYTHING, "learn_temperature": True})
    with torch.no_grad():
        towers.document.popularity.weight.fill_(0.1)
    queries = towers.encode_queries(towers.prepare_queries(QUERIES))
    documents = towers.encode_documents(towers.prepare_documents(DOCUMENTS))
    (towers.score(queries, documents[:6]) / towers.temperature).softmax(1).diagonal().log().sum().backward()
    assert [
        name for name, p in towers.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_a_missing_column_is_an_error_that_names_the_columns_there_are():
    config = {**EVERYTHING, "document": {**EVERYTHING["document"], "categories": [{"column": "colour"}]}}
    with pytest.raises(ConfigError, match=r"column 'colour' that is not there; there are: brand, clicks"):
        build(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": {**EVERYTHING["query"], "constant": False}}, "set query.constant: true"),
        (
            {"query": {**EVERYTHING["query"], "constant": False, "popularity": POPULARITY}},
            "document.popularity",
        ),
        ({"document": {**EVERYTHING["document"], "history": {"id": {}}}}, "belongs under query"),
        ({"query": TRANSFORMER}, "must be of one kind"),
        ({"query": TRANSFORMER, "document": {**TRANSFORMER, "pooling": "cls"}}, "differ in prefix only"),
        ({"query": {"kind": "features"}}, "at least one of text"),
        ({"query": {"kind": "graph"}}, "graph"),
        ({"temperature": 0}, "temperature"),
        ({"tempereture": 1}, "tempereture"),
    ],
)
def test_towers_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        TowersConfig.model_validate({**EVERYTHING, **change})


def test_inputs_that_share_a_table_of_different_sizes_are_refused():
    query = {**EVERYTHING["query"], "text": {**TEXT, "width": 8}, "history": None}
    with pytest.raises(ConfigError, match=r"share the table 'text' want it 1024 × 8 and 1024 × 16"):
        build({**EVERYTHING, "query": query})


def test_a_saved_configuration_is_readable_and_complete(tmp_path):
    towers = build(EVERYTHING)
    towers.save(tmp_path)
    saved = json.loads((tmp_path / "two_tower.json").read_text())
    assert TowersConfig.model_validate(saved) == towers.config


def test_the_default_configuration_builds():
    towers = build({})
    assert encode(towers.eval())[1].shape == (10, 64)
