import math

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from towers.batch import Features
from towers.encoders.encoder import Side
from towers.encoders.features import FeatureEncoder
from towers.encoders.fitted import fit
from towers.encoders.hashing import TextInput, hash_texts
from towers.encoders.inputs import FeatureTowerConfig
from towers.encoders.vocabulary import UNKNOWN, Vocabulary, build_vocabulary, lists_of

DOCUMENTS = pd.DataFrame(
    {
        "doc_id": ["warm", "hot", "cold"],
        "title": ["red shoe", "blue shirt", "green cap"],
        "text": ["", "", ""],
        "brand": ["nike", "puma", "nobody"],
        "tags": [["a", "b"], None, ["c"]],
        "price": [1.0, 2.0, math.nan],
        "clicks": [1, 5, 0],
    }
)

TEMPERATURE = 0.5


def build(side: Side, frame: pd.DataFrame, **config: object) -> FeatureEncoder:
    torch.manual_seed(0)
    settings = FeatureTowerConfig.model_validate(config)
    encoder = FeatureEncoder(settings, 8, side, fit(settings, side, frame, DOCUMENTS, {}), TEMPERATURE)
    encoder.weigh_words(encoder.texts(frame))
    return encoder


def document_tower(**config: object) -> FeatureEncoder:
    return build(Side.DOCUMENT, DOCUMENTS, **config)


def histories(*lists: object) -> pd.DataFrame:
    return pd.DataFrame(
        {"query_text": [None] * len(lists), "history": list(lists), "user_id": [None] * len(lists)}
    )


def rows(features: Features, name: str) -> list[list[int]]:
    part = features.ragged[name]
    return [part.values[a:b].tolist() for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)]


def test_documents_without_clicks_before_the_cut_are_unknown():
    tower = document_tower(id={})
    assert rows(tower.prepare(DOCUMENTS), "bag:doc_id") == [[2], [1], [UNKNOWN]]
    assert rows(tower.prepare(DOCUMENTS.assign(doc_id=["x", "y", "hot"])), "bag:doc_id") == [[0], [0], [1]]


def test_a_missing_id_is_unknown_but_a_missing_category_is_nothing():
    frame = pd.DataFrame({"user_id": ["u", None], "query_text": ["", ""], "plan": ["pro", None]})
    tower = build(Side.QUERY, frame, id={}, categories=[{"column": "plan"}])
    prepared = tower.prepare(frame)
    assert rows(prepared, "bag:user_id") == [[1], [UNKNOWN]]
    assert rows(prepared, "bag:plan") == [[1], []]


def test_categories_read_strings_and_lists():
    prepared = document_tower(categories=[{"column": "brand"}, {"column": "tags", "min_count": 0}]).prepare(
        DOCUMENTS
    )
    assert rows(prepared, "bag:brand") == [[2], [1], [UNKNOWN]]  # nobody clicked that brand
    assert rows(prepared, "bag:tags") == [[1, 2], [], [3]]


def test_ids_are_dropped_to_the_unknown_row_in_training_only_and_train_it():
    tower = document_tower(id={"dropout": 0.5})
    features = tower.prepare(pd.concat([DOCUMENTS.iloc[:1]] * 200))
    table = tower.tables["bag:doc_id"]
    embedded = table.eval()(features.ragged["bag:doc_id"], 0.5)
    assert torch.equal(embedded, table.embedding[2].expand(200, -1))
    embedded = table.train()(features.ragged["bag:doc_id"], 0.5)
    dropped = (embedded == table.embedding[UNKNOWN]).all(dim=1).sum().item()
    assert 60 < dropped < 140
    embedded.sum().backward()
    assert table.embedding.grad[UNKNOWN].abs().sum() > 0


def test_without_dropout_the_unknown_row_is_untouched_by_known_ids():
    tower = document_tower(id={"dropout": 0}).train()
    table = tower.tables["bag:doc_id"]
    table(tower.prepare(DOCUMENTS.iloc[:2]).ragged["bag:doc_id"], 0.0).sum().backward()
    assert table.embedding.grad[UNKNOWN].abs().sum() == 0


def test_every_unknown_id_has_the_same_vector():
    tower = document_tower(id={}).eval()
    unknown = pd.concat([DOCUMENTS.iloc[:1]] * 2).assign(doc_id=["new", "newer"])
    vectors = tower(tower.prepare(unknown))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], tower(tower.prepare(DOCUMENTS))[0])


def test_whole_numbers_stay_the_same_category_where_the_column_turns_to_floats():
    frame = DOCUMENTS.assign(size=[1, 2, 3])
    tower = build(Side.DOCUMENT, frame, categories=[{"column": "size", "min_count": 0}])
    with_a_gap = frame.assign(size=[1.0, math.nan, 3.0])
    as_rows = rows(tower.prepare(frame), "bag:size")
    assert rows(tower.prepare(with_a_gap), "bag:size") == [as_rows[0], [], as_rows[2]]


def test_a_column_with_a_dot_in_its_name_is_legal(tmp_path):
    frame = DOCUMENTS.assign(**{"brand.name": DOCUMENTS["brand"]})
    tower = build(Side.DOCUMENT, frame, categories=[{"column": "brand.name"}]).eval()
    tower.save(tmp_path)
    loaded = FeatureEncoder.load(tmp_path)
    assert torch.equal(loaded(loaded.prepare(frame)), tower(tower.prepare(frame)))


def test_a_history_is_the_mean_of_what_is_known_about_its_documents():
    inputs = {"id": {"width": 4, "dropout": 0}, "text": {"width": 4}, "numbers": [{"column": "price"}]}
    tower = build(Side.QUERY, histories([]), history=inputs, hidden=[]).eval()
    tower.straight = torch.nn.Identity()
    tower.projector = torch.nn.Linear(tower.projector.in_features, 10, bias=False)
    torch.nn.init.zeros_(tower.projector.weight)
    both, hot, warm, nothing = tower(tower.prepare(histories(["hot", "warm"], ["hot"], ["warm"], [])))
    torch.testing.assert_close(both, (hot + warm) / 2)
    assert torch.equal(nothing, torch.zeros(10))


def test_each_document_of_a_history_has_its_own_content_and_an_unknown_one_has_none():
    tower = build(Side.QUERY, histories([]), history={"text": {"width": 8}}, hidden=[], dropout=0).eval()
    with torch.no_grad():
        tower.projector.weight.zero_()
    titles = DOCUMENTS["title"].tolist()
    words = hash_texts([(titles, TextInput().title_weight)], TextInput())
    expected = tower.tables["text"](words, 0.0)
    *known, unknown = tower(tower.prepare(histories(["warm"], ["hot"], ["cold"], ["never heard of"])))
    torch.testing.assert_close(torch.stack(known), expected)  # the straight path starts as the identity
    assert unknown.tolist() == [0.0] * 8


def test_newer_documents_weigh_more_and_the_oldest_are_cut():
    tower = build(Side.QUERY, histories([]), history={"id": {}, "max_length": 3, "decay": 0.5})
    prepared = tower.prepare(histories(["cold", "warm", "warm", "hot"], ["hot"], [])).ragged["history"]
    assert prepared.values.tolist() == [1, 1, 2, 2]
    assert prepared.weights.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7, 1])
    assert prepared.lengths.tolist() == [3, 1, 0]


def test_a_loaded_tower_reads_histories_without_the_catalogue_and_with_unknown_documents(tmp_path):
    inputs = {"id": {}, "text": {}, "categories": [{"column": "brand"}, {"column": "tags"}]}
    tower = build(Side.QUERY, histories([]), history=inputs).eval()
    tower.save(tmp_path)
    loaded = FeatureEncoder.load(tmp_path)
    frame = histories(
        ["warm"], ["never heard of"], ["never heard of", "warm"], [], None, np.array(["hot"], dtype=object)
    )
    vectors = loaded(loaded.prepare(frame))
    assert torch.equal(vectors, tower(tower.prepare(frame)))
    assert torch.isfinite(vectors).all()
    assert not torch.allclose(vectors[0], vectors[1])


def test_a_cold_document_of_a_history_is_known_by_its_content():
    tower = build(Side.QUERY, histories([]), history={"id": {}, "text": {}}).eval()
    vectors = tower(tower.prepare(histories(["cold"], ["never heard of"])))
    assert not torch.allclose(vectors[0], vectors[1])


def test_a_batch_without_any_history_is_encoded():
    tower = build(Side.QUERY, histories([]), history={"id": {}})
    assert tower(tower.prepare(histories([], None))).shape == (2, 8)


def test_popularity_reaches_the_last_coordinate_on_a_straight_line():
    tower = document_tower(id={}, popularity=[{"column": "clicks", "start": 3}]).eval()
    logits = tower(tower.prepare(DOCUMENTS))[:, -1] / TEMPERATURE
    clicks = torch.tensor([1.0, 5.0, 0.0])
    torch.testing.assert_close(logits, 3 * (clicks - clicks.mean()))
    with torch.no_grad():
        tower.popularity.weight.mul_(2)
    torch.testing.assert_close(tower(tower.prepare(DOCUMENTS))[:, -1] / TEMPERATURE, 2 * logits)


def test_popularity_is_silent_at_first_unless_it_is_given_a_start():
    tower = document_tower(id={}, popularity=[{"column": "clicks"}, {"column": "price"}])
    assert tower(tower.prepare(DOCUMENTS))[:, -1].tolist() == [0, 0, 0]


def test_the_constant_is_the_same_for_every_query_and_learned():
    frame = pd.DataFrame({"query_text": ["a", "b", ""], "user_id": [None] * 3, "history": [[]] * 3})
    tower = build(Side.QUERY, frame, text={}, constant=True)
    last = tower(tower.prepare(frame))[:, -1]
    assert last.tolist() == [1.0, 1.0, 1.0]
    last.sum().backward()
    assert tower.constant.grad.item() == 3


def test_loading_leaves_the_random_state_as_it_was(tmp_path):
    document_tower(text={}, id={}).save(tmp_path)
    before = torch.get_rng_state()
    FeatureEncoder.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_a_batch_repeats_under_the_same_random_state():
    tower = document_tower(text={"dropout": 0.3}, id={"dropout": 0.5}).train()
    features = tower.prepare(pd.concat([DOCUMENTS] * 20))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(tower(features))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_an_empty_frame_gives_no_vectors():
    tower = document_tower(text={}, id={}, numbers=[{"column": "price"}], popularity=[{"column": "clicks"}])
    assert tower(tower.prepare(DOCUMENTS.iloc[:0])).shape == (0, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "at least one of text"),
        ({"id": {}, "history": {}}, "a history needs at least one"),
        ({"id": {}, "popularity": [{"column": "clicks"}], "constant": True}, "drop one"),
        ({"id": {}, "hidden": [0]}, "hidden sizes must be from 1"),
        ({"id": {"dropout": 1}}, "less than 1"),
    ],
)
def test_a_tower_that_makes_no_sense_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        FeatureTowerConfig.model_validate(config)


def test_the_vocabulary_keeps_the_most_frequent_with_ties_in_order_of_the_string():
    vocabulary = build_vocabulary({"b": 2, "a": 2, "rare": 1, "c": 5}, min_count=2, max_size=2)
    assert vocabulary.entries == ("c", "a")
    assert vocabulary.rows(["a", "c", "b", None, "rare"]).tolist() == [2, 1, 0, 0, 0]
    assert len(vocabulary) == 3


def test_an_empty_vocabulary_knows_nothing():
    assert Vocabulary([]).rows(["a", None]).tolist() == [0, 0]


def test_lists_hold_strings_whatever_the_column_held():
    column = pd.Series([["a", None], "b", None, math.nan, 3.0, np.array([1, 2]), True, ()], dtype=object)
    assert lists_of(column) == [["a"], ["b"], [], [], ["3"], ["1", "2"], ["True"], []]


def test_without_the_straight_path_the_network_alone_makes_the_vector(tmp_path):
    tower = document_tower(text={"width": 8}, straight=False, dropout=0).eval()
    assert not [name for name, _ in tower.named_parameters() if name.startswith("straight")]
    features = tower.prepare(DOCUMENTS)
    tower.save(tmp_path)
    assert torch.equal(FeatureEncoder.load(tmp_path)(features), tower(features))
    with torch.no_grad():
        tower.projector.weight.zero_()
    assert not tower(features).any()
