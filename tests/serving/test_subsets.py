import faiss
import numpy as np
import pytest

from features.errors import BundleError
from serving import index as index_module
from serving.build import IndexConfig, build
from serving.filters import Selection
from serving.index import Index
from serving.subsets import Allowed, adaptive, can_select, exhaustive
from serving.tune import exact_search

D = 16
FAMILIES = [
    "Flat",
    "SQ8",
    "IVF8,Flat",
    "IVF8,SQ8",
    "IVF8,PQ8x4fs",
    "IVF8,PQ8x4fsr,RFlat",
    "IVF8,PQ8x4fsr,Refine(SQ8)",
    "IVF8_HNSW8,Flat",
    "HNSW8",
    "HNSW8_SQ8",
    "NSG8",
    "PQ8x4fs",
    "PQ8x4fs,RFlat",
    "RR16,HNSW8",
    "RR16,IVF8,PQ8x4fsr,RFlat",
]
UNSELECTABLE = {"NSG8", "PQ8x4fs", "PQ8x4fs,RFlat"}


def clustered(count: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around 40 centres that every seed shares."""
    centre = np.random.default_rng(0).normal(size=(40, dimension))
    random = np.random.default_rng(seed)
    found = centre[random.integers(0, 40, count)] + 0.6 * random.normal(size=(count, dimension))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


DOCUMENTS, QUERIES = clustered(900, D, 1), clustered(20, D, 2)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[str, Index]:
    return request.param, build(DOCUMENTS, IndexConfig(factory=request.param), "cosine")


def selection(share: float, seed: int = 0, count: int = len(DOCUMENTS)) -> Selection:
    return Selection.of(np.random.default_rng(seed).random(count) < share)


def along(document_ND: np.ndarray, share: float, seed: int = 0) -> Selection:
    """Documents on one side of a plane: a filter that follows the vectors, as brands and prices do."""
    side = document_ND @ np.random.default_rng(seed).normal(size=document_ND.shape[1])
    return Selection.of(side >= np.quantile(side, 1 - share))


@pytest.mark.parametrize("share", [0.999, 0.5, 0.1, 0.003])
@pytest.mark.parametrize("few", [0, 10_000], ids=["search", "scan"])
def test_every_family_returns_selected_documents_only_and_as_many_as_there_are(
    family, share, few, monkeypatch
):
    monkeypatch.setattr(index_module, "_EXHAUSTIVE_ROWS", few)
    _, index = family
    chosen = selection(share)
    for found in index.search(QUERIES, 7, chosen):
        assert chosen.mask[found.rows].all()
        assert len(set(found.rows.tolist())) == min(7, chosen.count)
        assert (np.diff(found.scores) <= 0).all()


def test_a_scan_finds_the_best_stored_documents_in_every_family(family):
    name, index = family
    chosen = selection(0.2)
    rows = np.flatnonzero(chosen.mask)
    try:
        stored = index.vectors(rows)
    except BundleError:
        assert name == "IVF8,PQ8x4fs"
        return
    exact = exact_search(QUERIES, stored, 5)
    for found, wanted in zip(index.search(QUERIES, 5, chosen), exact, strict=True):
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=2e-3)


def test_what_a_family_can_do_is_known(family):
    name, index = family
    lossless = name in ("Flat", "IVF8,Flat", "IVF8_HNSW8,Flat", "HNSW8", "NSG8") or name.endswith("RFlat")
    assert can_select(index._host) == (name not in UNSELECTABLE)
    assert index.is_lossless == lossless
    if index.is_lossless:
        np.testing.assert_array_equal(index.vectors(np.array([899, 0, 5])), DOCUMENTS[[899, 0, 5]])


def test_selecting_nothing_or_everything(family):
    _, index = family
    nothing = index.search(QUERIES, 3, selection(-1.0))
    assert [len(found.rows) for found in nothing] == [0] * len(QUERIES)
    for one, other in zip(index.search(QUERIES, 3, selection(2.0)), index.search(QUERIES, 3), strict=True):
        assert one.rows.tolist() == other.rows.tolist()


def test_a_selection_of_another_catalogue_is_refused():
    index = build(DOCUMENTS, IndexConfig(), "cosine")
    with pytest.raises(ValueError, match="selection of 899 documents; the index has 900"):
        index.search(QUERIES, 3, selection(0.5, count=899))


def test_parameters_that_are_set_on_the_index_hold_in_a_selection():
    index = build(DOCUMENTS, IndexConfig(factory="IVF8,Flat"), "cosine")
    chosen = Allowed(selection(0.999).mask)
    found = []
    for nprobe in (1, 8):
        index.set_parameters({"nprobe": nprobe})
        found.append(adaptive(index._host, QUERIES, 50, chosen).scores.sum())
    exact = exhaustive(index._host, QUERIES, 50, chosen).scores.sum()
    assert found[0] < found[1] == pytest.approx(exact, rel=1e-5)


def test_reading_vectors_back_leaves_no_trace_in_the_file(tmp_path):
    index = build(DOCUMENTS, IndexConfig(factory="IVF8,Flat"), "cosine")
    index.write(tmp_path / "before")
    index.vectors(np.arange(3))
    index.write(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@pytest.mark.parametrize(
    ("factory", "k"), [("IVF64,Flat", 10), ("HNSW16", 10), ("HNSW16", 100), ("IVF64,PQ16x4fsr,RFlat", 10)]
)
def test_filters_cost_no_ann_recall(factory, k):
    documents, queries, target = clustered(24_000, 32, 1), clustered(100, 32, 2), 0.95
    index = build(documents, IndexConfig(factory=factory), "cosine")
    if "RFlat" in factory:
        index.set_parameters({"k_factor_rf": 32})
    for setting in (2, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        index.set_parameters({index.tunable: setting})
        if recall(index.search(queries, k), documents, queries) >= target:
            break
    else:
        pytest.fail("no setting reaches the target without a filter")
    for share in (0.5, 0.1, 0.01, 0.001):
        for chosen in (selection(share, 3, len(documents)), along(documents, share, 4)):
            got = index.search(queries, k, chosen)
            assert recall(got, documents, queries, chosen.mask) >= target, (share, "served")
            if share >= 0.1:  # also where the scan would be chosen
                rows = adaptive(index._host, queries, k, Allowed(chosen.mask)).rows
                assert mean_recall(rows, documents, queries, chosen.mask) >= target, (share, "adaptive")


def recall(found, documents, queries, mask=None) -> float:
    return mean_recall([one.rows for one in found], documents, queries, mask)


def mean_recall(rows, documents, queries, mask=None) -> float:
    allowed = np.arange(len(documents)) if mask is None else np.flatnonzero(mask)
    depth = min(len(rows[0]), len(allowed))
    exact = faiss.knn(queries, documents[allowed], depth, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(
        np.mean([len(set(got) & set(want)) / depth for got, want in zip(rows, allowed[exact], strict=True)])
    )
