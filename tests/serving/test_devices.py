import faiss
import numpy as np
import pytest

from features.errors import ConfigError
from serving.build import IndexConfig, build
from serving.choose import choose
from serving.devices import best_device, place, stored_bytes
from serving.index import Index

DOCUMENTS = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
NO_GPU = faiss.get_num_gpus() == 0


class Exhausted:
    """What a GPU index does when a search finds no memory left."""

    def search(self, query_BD, k):
        raise RuntimeError(
            "Error in virtual void* StandardGpuResourcesImpl::allocMemory at gpu.cpp:9: Error: out of memory"
        )


def test_a_search_that_the_gpu_has_no_memory_for_is_answered_by_the_cpu_and_said():
    index = build(DOCUMENTS, IndexConfig(factory="IVF8,Flat", search={"nprobe": 3}, device="cpu"), "dot")
    expected = index.search(QUERIES, 5)
    index._searched, index.device = Exhausted(), "gpu"
    for _ in range(2):
        for one, other in zip(index.search(QUERIES, 5), expected, strict=True):
            assert one.rows.tolist() == other.rows.tolist()
        assert index.device == "cpu"
        assert index.lost == "on CPU, since a search on the GPU failed: out of memory"
        assert "out of memory" in index.note


def test_an_index_that_was_never_on_a_gpu_has_lost_nothing():
    assert build(DOCUMENTS, IndexConfig(device="cpu"), "dot").lost is None


@pytest.mark.skipif(not NO_GPU, reason="faiss sees a GPU here")
def test_without_a_gpu_only_the_candidates_of_a_cpu_are_tried():
    assert [best_device(device) for device in ("auto", "cpu", "gpu")] == ["cpu"] * 3
    with pytest.raises(ConfigError, match="faiss sees none"):
        place(faiss.IndexFlatIP(4), "gpu")


def test_cagra_without_a_faiss_that_has_it_is_refused_with_what_to_use():
    if best_device("gpu") == "cagra":
        pytest.skip("this faiss has CAGRA")
    with pytest.raises(ConfigError, match=r"CAGRA needs a GPU .* use HNSW32"):
        build(DOCUMENTS, IndexConfig(factory="CAGRA32"), "dot")


def test_a_cagra_graph_that_was_stored_is_searched_on_a_cpu():
    graph = faiss.IndexHNSWCagra(16, 16, faiss.METRIC_INNER_PRODUCT)
    graph.add(DOCUMENTS)
    index = Index(graph, "auto" if NO_GPU else "cpu")
    index.set_parameters({"efSearch": 200})
    exact = build(DOCUMENTS, IndexConfig(device="cpu"), "dot").search(QUERIES, 5)
    found = [
        len({*one.rows} & {*other.rows}) for one, other in zip(index.search(QUERIES, 5), exact, strict=True)
    ]
    assert sum(found) >= 16  # of 20


def test_stored_bytes_are_those_of_the_file(tmp_path):
    index = build(DOCUMENTS, IndexConfig(factory="IVF8,SQ8", device="cpu"), "dot")
    index.write(tmp_path / "index.faiss")
    assert index.stored_bytes == (tmp_path / "index.faiss").stat().st_size == stored_bytes(index._host)


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU, reason="faiss sees no GPU")
def test_a_gpu_choice_meets_its_target_and_is_searched_there():
    documents = np.random.default_rng(2).normal(size=(40_000, 32)).astype(np.float32)
    choice = choose(documents, documents[:200] + np.float32(0.1), IndexConfig(target_recall=0.9, k=10), "dot")
    assert choice.met is True
    assert isinstance(choice.index, Index)
    assert choice.index.device == "gpu"


@pytest.mark.gpu
@pytest.mark.skipif(best_device("gpu") != "cagra", reason="this faiss has no CAGRA")
@pytest.mark.parametrize("k", [10, 100])
def test_cagra_finds_nearly_what_an_exact_search_finds(k, tmp_path):
    documents = np.random.default_rng(3).normal(size=(20_000, 32)).astype(np.float32)
    exact = build(documents, IndexConfig(), "dot").search(QUERIES.repeat(2, axis=1), k)
    index = build(documents, IndexConfig(factory="CAGRA32"), "dot")
    index.set_parameters({"efSearch": 256})
    index.write(tmp_path / "index.faiss")
    for searched in (index, Index(faiss.read_index(str(tmp_path / "index.faiss")), "cpu")):
        found = searched.search(QUERIES.repeat(2, axis=1), k)
        shares = [len({*one.rows} & {*other.rows}) / k for one, other in zip(found, exact, strict=True)]
        assert np.mean(shares) > 0.9
