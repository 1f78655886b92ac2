"""What a trial load finds before a bundle is opened; children that crash take nothing along."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.artifact import Artifact, publish
from features.errors import BundleError
from serving import trial
from serving.bundle import Bundle, load
from serving.faiss_file import check_faiss, read_faiss
from serving.follow import Follower
from serving.store import Store

ROWS, DIMENSION = 400, 16


def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def built(factory: str, vector_ND: np.ndarray | None = None) -> Any:
    index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    for owner in (index, faiss.try_extract_index_ivf(index)):
        for quantiser in (owner, getattr(owner, "pq", None)):
            if hasattr(quantiser, "cp"):
                quantiser.cp.min_points_per_centroid = 1
    index.train(vectors())
    index.add(vectors() if vector_ND is None else vector_ND)
    return index


def republished(path: Path, change: Callable[[Path], None]) -> Artifact:
    """Change a bundle and give it a manifest that agrees with the change."""
    content = dict(Artifact.read(path).content)
    target = path.parent / "changed"
    with publish(target, "bundle", content) as staging:
        shutil.copytree(path, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        change(staging)
    final = path.parent / Artifact.read(target).digest[:16]
    return Artifact.read(target.rename(final))


@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "SQ8",
        "SQfp16",
        "IVF8,Flat",
        "IVF8_HNSW4,SQ8",
        "HNSW8",
        "HNSW8,SQ8",
        "NSG8",
        "PQ8x4fs,RFlat",
        "IVF8,PQ8x4fs,Refine(SQbf16)",
        "OPQ8_16,IVF8,PQ8x4",
        "PCA8,Flat",
    ],
)
def test_a_sound_index_of_every_kind_comes_back_within_the_limits(tmp_path: Path, factory: str):
    index = built(factory)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    again = read_faiss(tmp_path / "index.faiss")
    check_faiss(again, unit=True)
    assert faiss.get_deserialization_vector_byte_limit() < 2**31 + 10**6
    assert faiss.get_deserialization_loop_limit() < 10**6
    assert np.array_equal(again.search(vectors()[:9], 5)[1], index.search(vectors()[:9], 5)[1])


def test_links_that_lead_out_of_a_graph_are_found():
    for place, link in ((0, ROWS), (7, -2), (11, 2**30)):
        index = built("HNSW8")
        faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())[place] = link
        with pytest.raises(BundleError, match="lead out of it"):
            check_faiss(index, unit=True)
    index = built("NSG8")
    graph = index.nsg.get_final_graph()
    faiss.rev_swig_ptr(graph.data, graph.N * graph.K)[5] = ROWS
    with pytest.raises(BundleError, match="lead out of it"):
        check_faiss(index, unit=True)
    index = built("HNSW8")
    index.hnsw.entry_point = ROWS
    with pytest.raises(BundleError, match="lead out of it"):
        check_faiss(index, unit=True)


@pytest.mark.parametrize("row", [-1, ROWS, 2**40, "the first one again"])
def test_rows_that_an_inverted_list_cannot_have_are_found(row: Any):
    index = built("IVF4,Flat")
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(0), index.invlists.list_size(0))
    ids[1] = ids[0] if isinstance(row, str) else row
    with pytest.raises(BundleError, match=r"a row that the index does not have|lack 1 rows"):
        check_faiss(index, unit=True)


def test_lists_in_another_file_are_refused(tmp_path: Path):
    index = built("IVF4,Flat")
    lists = faiss.OnDiskInvertedLists(4, index.code_size, str(tmp_path / "elsewhere"))
    lists.merge_from(index.invlists, 0)
    index.replace_invlists(lists, False)
    with pytest.raises(BundleError, match="elsewhere"):
        check_faiss(index, unit=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1.5])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "PQ8x4fs,RFlat"])
def test_a_stored_vector_that_no_towers_made_is_found(factory: str, value: float):
    vector_ND = vectors()
    vector_ND[17, 3] = value
    with pytest.raises(BundleError, match=r"not finite|lack 1 rows"):  # an IVF leaves NaN out by itself
        check_faiss(built(factory, vector_ND), unit=True)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "PQ8x4fs,RFlat"])
def test_a_stored_vector_is_of_unit_length_or_of_none_where_towers_make_such(factory: str):
    vector_ND = vectors()
    vector_ND[17] = 0.0
    check_faiss(built(factory, vector_ND), unit=True)
    vector_ND[17, 3] = 0.998
    with pytest.raises(BundleError, match="too short"):
        check_faiss(built(factory, vector_ND), unit=True)
    check_faiss(built(factory, vector_ND), unit=False)


def test_an_index_of_another_shape_than_its_catalogue_is_refused_by_the_child(bundle: Bundle, tmp_path: Path):
    copied = Path(shutil.copytree(bundle.artifact.path, tmp_path / "copied"))
    changed = republished(
        copied,
        lambda staging: faiss.write_index(
            built("Flat", vectors()[:3]), str(staging / "index" / "index.faiss")
        ),
    )
    with pytest.raises(BundleError, match="3 vectors for"):
        trial.survive(changed)


@pytest.mark.crash
def test_a_catalogue_that_unpacks_to_more_memory_than_a_bundle_may_is_refused(bundle: Bundle, tmp_path: Path):
    copied = Path(shutil.copytree(bundle.artifact.path, tmp_path / "copied"))

    def swell(staging: Path) -> None:
        table = pq.read_table(staging / "documents.parquet")
        whole = pa.concat_tables([table] * 150)
        same = pa.DictionaryArray.from_arrays(pa.array([0] * len(whole), pa.int32()), ["x" * 1_000_000])
        place = whole.column_names.index("text")
        pq.write_table(
            whole.set_column(place, "text", same), staging / "documents.parquet", store_schema=False
        )

    changed = republished(copied, swell)
    assert sum(told["bytes"] for told in changed.manifest["files"].values()) < 20_000_000
    with pytest.raises(BundleError, match="memory") as caught:
        trial.survive(changed)
    assert "\n" not in str(caught.value)


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every Python child do something before its program starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def arrange(program: str) -> None:
        (folder / "sitecustomize.py").write_text(f"import ctypes, os, time\n{program}\n")
        trial._survived.clear()

    return arrange


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("ctypes.string_at(0)", "ended by SIGSEGV"),
        ("os.abort()", "ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("os._exit(3)", "it said nothing"),
    ],
)
def test_a_child_that_dies_refuses_the_bundle_in_one_line_and_kills_nobody_else(
    bundle: Bundle, crashing: Callable[[str], None], program: str, said: str
):
    crashing(program)
    with pytest.raises(BundleError, match=said) as caught:
        load(bundle.artifact.path)
    assert "\n" not in str(caught.value)
    crashing("")
    assert load(bundle.artifact.path).bundle_id == bundle.bundle_id


def test_a_child_that_hangs_is_ended(
    bundle: Bundle, crashing: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "_LEAST_SECONDS", 1)
    crashing("time.sleep(60)")
    with pytest.raises(BundleError, match="more than 1 s"):
        load(bundle.artifact.path)


def test_a_bundle_that_survived_once_is_not_tried_again(bundle: Bundle, crashing: Callable[[str], None]):
    crashing("")
    load(bundle.artifact.path)
    survived = set(trial._survived)
    crashing("os.abort()")
    trial._survived.update(survived)
    load(bundle.artifact.path)


def test_a_crash_of_the_trial_leaves_the_old_bundle_serving(
    tmp_path: Path, make, crashing: Callable[[str], None]
):
    store = Store(tmp_path)
    old = make.shop(tmp_path).path.name
    new = make.shop(tmp_path, seed=1).path.name
    store.set_champion(old, "first")
    follower = Follower(store)
    follower.check()
    assert follower.served is not None
    store.set_champion(new, "better, it seemed")
    crashing("ctypes.string_at(0)")
    follower.check()
    assert follower.served.retriever.bundle.bundle_id == old
    assert follower.refusal is not None
    assert follower.refusal.bundle_id == new
    assert "SIGSEGV" in follower.refusal.message


def test_the_child_imports_no_torch():
    program = "import sys, serving.trial, serving.faiss_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0
