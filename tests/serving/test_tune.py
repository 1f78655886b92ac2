import numpy as np
import pytest

from serving.build import IndexConfig, build
from serving.tune import ann_recall, exact_search, tune

D = 16
RNG = np.random.default_rng(3)
DOCUMENTS = RNG.normal(size=(1_500, D)).astype(np.float32)
QUERIES = RNG.normal(size=(60, D)).astype(np.float32)
IVF = IndexConfig(factory="IVF32,Flat", k=10)


def test_ann_recall_is_the_overlap_with_exact_search():
    index = build(DOCUMENTS, IVF, "dot")
    shares = []
    for query_D, found in zip(QUERIES, index.search(QUERIES, 10), strict=True):
        exact = set(np.argsort(-(DOCUMENTS @ query_D))[:10].tolist())
        shares.append(len(exact & set(found.rows.tolist())) / 10)
    assert ann_recall(index, QUERIES, DOCUMENTS, 10) == pytest.approx(np.mean(shares))
    assert np.mean(shares) < 0.6  # one inverted list of 32 is what faiss searches unless told otherwise


def test_short_vectors_are_no_ties():
    expected = ann_recall(build(DOCUMENTS, IVF, "dot"), QUERIES, DOCUMENTS, 10)
    short = DOCUMENTS * np.float32(2**-20)  # exact in float32: the same lists, the same order
    assert ann_recall(build(short, IVF, "dot"), QUERIES, short, 10) == pytest.approx(expected, abs=0.02)


def test_a_flat_index_has_ann_recall_one():
    assert ann_recall(build(DOCUMENTS, IndexConfig(), "dot"), QUERIES, DOCUMENTS, 10) == 1.0


def test_duplicates_at_the_boundary_are_interchangeable():
    documents = np.concatenate([DOCUMENTS[:1], np.repeat(DOCUMENTS[1:2], 9, axis=0)])
    query = DOCUMENTS[:1]
    exact = exact_search(query, documents, 3)
    index = build(documents[::-1].copy(), IndexConfig(), "dot")
    assert ann_recall(index, query, documents[::-1].copy(), 3) == 1.0
    assert exact[0].rows.tolist() == [0, 1, 2]


def test_tuning_finds_the_smallest_nprobe_that_meets_the_target():
    index = build(DOCUMENTS, IVF, "dot")
    config = IVF.model_copy(update={"target_recall": 0.9})
    tuning = tune(index, QUERIES, DOCUMENTS, config)
    chosen = tuning.parameters["nprobe"]
    assert tuning.met is True
    assert ann_recall(index, QUERIES, DOCUMENTS, 10) == tuning.ann_recall >= 0.9
    index.set_parameters({"nprobe": chosen - 1})
    assert ann_recall(index, QUERIES, DOCUMENTS, 10) < 0.9


def test_tuning_works_on_graphs():
    config = IndexConfig(factory="HNSW8", k=10, target_recall=0.95)
    tuning = tune(build(DOCUMENTS, config, "dot"), QUERIES, DOCUMENTS, config)
    assert tuning.met is True
    assert tuning.parameters["efSearch"] > 1


def test_a_target_that_nothing_meets_is_said_and_the_best_setting_stays():
    config = IndexConfig(factory="IVF8,PQ2x4", k=10, target_recall=0.99)
    index = build(DOCUMENTS, config, "dot")
    tuning = tune(index, QUERIES, DOCUMENTS, config)
    assert tuning.met is False
    assert tuning.ann_recall < 0.99
    assert tuning.parameters == {"nprobe": 8}


def test_a_fixed_parameter_is_measured_and_not_tuned():
    config = IVF.model_copy(update={"target_recall": 0.9, "search": {"nprobe": 2}})
    tuning = tune(build(DOCUMENTS, config, "dot"), QUERIES, DOCUMENTS, config)
    assert tuning.parameters == {"nprobe": 2}
    assert tuning.met is False
    assert tuning.curve == []


def test_measuring_without_queries_is_an_error_and_no_number():
    with pytest.raises(ValueError, match="at least one query"):
        ann_recall(build(DOCUMENTS, IVF, "dot"), QUERIES[:0], DOCUMENTS, 10)
