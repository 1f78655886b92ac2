import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from features.errors import BundleError, ConfigError
from serving.build import IndexConfig, build
from serving.index import Index, read
from serving.vectors import check_vectors

D = 16


def vectors(count: int, seed: int = 0, unit: bool = True) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True) if unit else found


def test_a_flat_index_ranks_by_inner_product():
    document_ND, query_BD = vectors(50), vectors(3, 1)
    for query_D, found in zip(
        query_BD, build(document_ND, IndexConfig(), "cosine").search(query_BD, 7), strict=True
    ):
        scores = document_ND @ query_D
        assert found.rows.tolist() == np.argsort(-scores)[:7].tolist()
        np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:7], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 2e6])
def test_a_query_with_an_unsafe_component_never_reaches_faiss(value):
    index = build(vectors(20), IndexConfig(), "cosine")
    query_BD = vectors(2)
    query_BD[1, 3] = value
    with pytest.raises(ValueError, match="vector 1 is not finite or longer"):
        index.search(query_BD, 3)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (np.zeros((1, D), np.float64), "float64"),
        (np.zeros((1, D), np.int32), "int32"),
        ([[0.0] * D], "list"),
        (np.zeros((1, D + 1), np.float32), r"\(B, 16\)"),
        (np.zeros(D, np.float32), r"\(B, 16\)"),
    ],
)
def test_a_query_of_another_type_or_shape_is_refused(query, said):
    with pytest.raises(ValueError, match=said):
        check_vectors(query, D)


def test_subnormal_and_zero_queries_are_answered_with_finite_scores():
    index = build(vectors(20), IndexConfig(), "cosine")
    query_BD = np.zeros((2, D), np.float32)
    query_BD[1] = 1e-42
    for found in index.search(query_BD, 3):
        assert len(found.rows) == 3
        assert np.isfinite(found.scores).all()


def test_k_is_clipped_to_the_corpus_and_must_be_positive():
    index = build(vectors(4), IndexConfig(), "cosine")
    assert len(index.search(vectors(1), 100_000_000)[0].rows) == 4
    with pytest.raises(ValueError, match="k = 0"):
        index.search(vectors(1), 0)


def test_places_that_faiss_leaves_empty_are_dropped():
    index = build(vectors(400), IndexConfig(factory="IVF16,Flat", search={"nprobe": 1}), "cosine")
    found = index.search(vectors(1, 1), 400)[0]
    assert 0 < len(found.rows) < 400
    assert (found.rows >= 0).all()
    assert np.isfinite(found.scores).all()


def test_equal_scores_come_in_row_order():
    document_ND = np.repeat(vectors(1), 6, axis=0)
    assert build(document_ND, IndexConfig(), "cosine").search(document_ND[:1], 6)[0].rows.tolist() == [
        *range(6)
    ]


@pytest.mark.parametrize(
    ("factory", "count", "said"),
    [
        ("IVF4096,Flat", 500, r"500 documents.*500.*4096"),
        ("PQ8", 100, r"100 documents.*100.*256"),
        ("PQ7", 500, "multiple of the number of subquantizers"),
        ("nonsense", 500, "could not parse index string nonsense"),
    ],
)
def test_a_factory_that_cannot_be_built_is_one_line_with_the_numbers(factory, count, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build(vectors(count), IndexConfig(factory=factory), "cosine")
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


@pytest.mark.parametrize(
    "factory",
    [
        *("L2norm,Flat", "IDMap,Flat", "IDMap2,HNSW16"),
        *("PCA8,Flat", "PCAR16,IVF4,Flat", "PCAW8,SQ8", "ITQ16,Flat", "IVF4,Flat,Refine(PCA8,Flat)"),
    ],
)
def test_a_factory_that_changes_ids_or_similarity_is_refused(factory):
    with pytest.raises(ValidationError, match="leave L2norm, IDMap, PCA and ITQ out"):
        IndexConfig(factory=factory)


def test_a_search_parameter_that_the_index_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="nprobe"):
        build(vectors(20), IndexConfig(search={"nprobe": 4}), "cosine")


def test_cosine_vectors_must_have_unit_length_and_other_similarities_are_unknown():
    with pytest.raises(BundleError, match="unit length"):
        build(vectors(20, unit=False), IndexConfig(), "cosine")
    assert build(vectors(20, unit=False), IndexConfig(), "dot").size == 20
    with pytest.raises(BundleError, match="'l2'"):
        build(vectors(20), IndexConfig(), "l2")


def test_an_index_of_another_metric_is_refused(tmp_path):
    wrong = faiss.IndexFlatL2(D)
    with pytest.raises(BundleError, match="inner product"):
        Index(wrong)
    faiss.write_index(wrong, str(tmp_path / "index.faiss"))
    with pytest.raises(BundleError, match="inner product"):
        read(tmp_path / "index.faiss")


def test_an_index_survives_writing_and_reading(tmp_path):
    document_ND, query_BD = vectors(300), vectors(4, 1)
    built = build(document_ND, IndexConfig(factory="IVF8,SQ8", search={"nprobe": 3}), "cosine")
    built.write(tmp_path / "index.faiss")
    again = read(tmp_path / "index.faiss")
    again.set_parameters({"nprobe": 3})
    for before, after in zip(built.search(query_BD, 9), again.search(query_BD, 9), strict=True):
        assert before.rows.tolist() == after.rows.tolist()


def test_a_file_that_is_no_index_is_one_line(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match="not a readable faiss index") as caught:
        read(tmp_path / "index.faiss")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="faiss sees a GPU here")
def test_a_required_gpu_that_is_not_there_is_said_and_auto_says_what_it_took():
    with pytest.raises(ConfigError, match="faiss sees none"):
        build(vectors(20), IndexConfig(device="gpu"), "cosine")
    index = build(vectors(20), IndexConfig(device="auto"), "cosine")
    assert index.device == "cpu"
    assert "on CPU (0 GPUs seen)" in index.note


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="faiss sees no GPU")
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_a_gpu_index_answers_as_the_cpu_index(factory):
    document_ND, query_BD = vectors(2_000), vectors(5, 1)
    config = IndexConfig(factory=factory, search={} if factory == "Flat" else {"nprobe": 16})
    on_gpu = build(document_ND, config, "cosine")
    on_cpu = build(document_ND, config.model_copy(update={"device": "cpu"}), "cosine")
    assert on_gpu.device == "gpu"
    for one, other in zip(on_gpu.search(query_BD, 10), on_cpu.search(query_BD, 10), strict=True):
        assert set(one.rows) == set(other.rows)


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="faiss sees no GPU")
def test_an_index_that_cannot_go_to_the_gpu_stays_and_says_so():
    index = build(vectors(200), IndexConfig(factory="HNSW8"), "cosine")
    assert index.device == "cpu"
    assert "the GPU refused" in index.note
    with pytest.raises(ConfigError, match="cannot be placed on the GPU"):
        build(vectors(200), IndexConfig(factory="HNSW8", device="gpu"), "cosine")
