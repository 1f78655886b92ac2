import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import BundleError
from serving.bundle import Bundle, load
from serving.canary import query_frame
from serving.encode import KEPT_CHARACTERS, QueryEncoder, encode_documents, encode_queries
from serving.search import Query


def test_a_vector_does_not_depend_on_order_or_batch_mates(bundle: Bundle):
    together = encode_documents(bundle.towers, bundle.documents)
    assert together.dtype == np.float32
    assert together.shape == (len(bundle.documents), 16)
    for row in range(len(bundle.documents)):
        alone = encode_documents(bundle.towers, bundle.documents.iloc[[row]])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_queries_and_documents_meet_in_the_towers_score(bundle: Bundle):
    query_BD = encode_queries(bundle.towers, query_frame("red shoes", []))
    features = bundle.towers.prepare_queries(query_frame("red shoes", []))
    with torch.inference_mode():
        expected = bundle.towers.encode_queries(features).numpy()
    np.testing.assert_array_equal(query_BD, expected)


def test_progress_ends_at_all_rows(bundle: Bundle):
    seen: list[tuple[int, int]] = []
    encode_documents(bundle.towers, bundle.documents, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(bundle.documents), len(bundle.documents))


def test_nothing_encodes_to_no_rows(bundle: Bundle):
    assert encode_documents(bundle.towers, bundle.documents.iloc[:0]).shape == (0, 16)


def test_a_document_without_a_finite_vector_is_named(bundle: Bundle, monkeypatch):
    spoilt = torch.ones(len(bundle.documents), 16)
    spoilt[7, 2] = float("nan")

    def encode(features):
        return spoilt[: len(features)]

    monkeypatch.setattr(bundle.towers, "encode_documents", encode)
    monkeypatch.setattr("serving.encode._longest_first", lambda features: torch.arange(len(features)))
    with pytest.raises(BundleError, match=f"document '{bundle.doc_ids[7]}' has a vector that is not finite"):
        encode_documents(bundle.towers, bundle.documents)


def test_a_query_without_a_finite_vector_is_refused(bundle: Bundle, monkeypatch):
    monkeypatch.setattr(
        bundle.towers, "encode_queries", lambda features: torch.full((len(features), 16), torch.inf)
    )
    with pytest.raises(BundleError, match="query 0 of 2 has no finite vector"):
        encode_queries(bundle.towers, pd.concat([query_frame("a", []), query_frame("b", [])]))


@pytest.mark.parametrize(
    ("query", "is_kept"),
    [
        (Query("red shoes"), True),
        (Query("red shoes", (), "u" * (KEPT_CHARACTERS - len("red shoes"))), True),
        (Query("é" * KEPT_CHARACTERS), True),
        (Query("é" * (KEPT_CHARACTERS + 1)), False),
        (Query("red shoes", (), "u" * KEPT_CHARACTERS), False),
        (Query("red shoes", ("d01",)), False),
    ],
)
def test_vectors_of_short_texts_are_kept_and_others_are_made_again(bundle: Bundle, query, is_kept):
    encoder = QueryEncoder(bundle.towers)
    first, again = encoder.encode([query]), encoder.encode([query])
    assert (encoder.hits, encoder.misses) == ((1, 1) if is_kept else (0, 2))
    np.testing.assert_array_equal(first, again)


def test_no_more_vectors_are_kept_than_asked_for_and_the_oldest_goes(bundle: Bundle):
    encoder = QueryEncoder(bundle.towers, kept=2)
    encoder.encode([Query("red"), Query("tea"), Query("lamp")])
    encoder.encode([Query("tea"), Query("lamp")])
    assert (encoder.hits, encoder.misses) == (2, 3)
    encoder.encode([Query("red")])
    assert (encoder.hits, encoder.misses) == (2, 4)


def test_towers_in_training_mode_are_refused(shop):
    towers = load(next((shop / "bundles").iterdir())).towers.train()
    with pytest.raises(ValueError, match="training mode"):
        encode_queries(towers, query_frame("red", []))
