import numpy as np
import pytest

from serving.build import IndexConfig, build
from serving.tune import Yardstick, ann_recall, exact_search, tune

D = 16
RNG = np.random.default_rng(3)
DOCUMENTS = RNG.normal(size=(1_500, D)).astype(np.float32)
QUERIES = RNG.normal(size=(60, D)).astype(np.float32)
IVF = IndexConfig(factory="IVF32,Flat", k=10)
YARDSTICK = Yardstick(QUERIES, DOCUMENTS, 10)


def index_of(factory):
    return build(DOCUMENTS, IndexConfig(factory=factory), "dot")


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
    index = index_of("IVF32,Flat")
    met = [reading for reading in tune(index, YARDSTICK, 0.9, {}) if reading.ann_recall >= 0.9]
    smallest = min(met, key=lambda reading: reading.parameters["nprobe"])
    index.set_parameters(smallest.parameters)
    assert ann_recall(index, QUERIES, DOCUMENTS, 10) == smallest.ann_recall
    index.set_parameters({"nprobe": smallest.parameters["nprobe"] - 1})
    assert ann_recall(index, QUERIES, DOCUMENTS, 10) < 0.9


def test_a_graph_is_not_asked_for_less_than_k():
    readings = tune(index_of("HNSW8"), YARDSTICK, 0.95, {})
    assert max(reading.ann_recall for reading in readings) >= 0.95
    assert min(reading.parameters["efSearch"] for reading in readings) == 10


def test_a_longer_list_to_score_again_needs_fewer_lists_to_scan():
    readings = tune(index_of("IVF32,PQ8x4fs,RFlat"), YARDSTICK, 0.9, {})
    smallest: dict[int, int] = {}
    for reading in readings:
        if reading.ann_recall >= 0.9:
            factor, nprobe = reading.parameters["k_factor_rf"], reading.parameters["nprobe"]
            smallest[factor] = min(nprobe, smallest.get(factor, nprobe))
    assert len(smallest) > 1
    assert sorted(smallest.values(), reverse=True) == [smallest[factor] for factor in sorted(smallest)]
    assert smallest[max(smallest)] < smallest[min(smallest)]


def test_codes_that_cannot_reach_the_target_are_not_searched_to_the_last_list():
    readings = tune(index_of("IVF128,PQ2x4"), YARDSTICK, 0.99, {})
    assert all(reading.ann_recall < 0.99 for reading in readings)
    assert max(reading.parameters["nprobe"] for reading in readings) < 128


def test_a_setting_slower_than_the_limit_is_not_followed():
    readings = tune(index_of("IVF32,Flat"), YARDSTICK, 1.0, {}, limit_us=1e-3)
    assert [reading.parameters for reading in readings] == [{"nprobe": 1}]


def test_fixed_parameters_are_measured_and_not_tuned():
    (reading,) = tune(index_of("IVF32,Flat"), YARDSTICK, 0.9, {"nprobe": 2})
    assert reading.parameters == {"nprobe": 2}
    factors = {
        reading.parameters["k_factor_rf"]
        for reading in tune(index_of("IVF32,PQ8x4fs,RFlat"), YARDSTICK, 0.9, {"k_factor_rf": 8})
    }
    assert factors == {8}


def test_a_reading_holds_times_of_a_query():
    reading = YARDSTICK.read(index_of("Flat"), {})
    assert 0 < reading.batch_us < 1e5
    assert 0 < reading.p50_us < 1e5


def test_measuring_without_queries_is_an_error_and_no_number():
    with pytest.raises(ValueError, match="at least one query"):
        ann_recall(build(DOCUMENTS, IVF, "dot"), QUERIES[:0], DOCUMENTS, 10)
