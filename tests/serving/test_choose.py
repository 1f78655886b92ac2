import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from features.artifact import Artifact
from features.errors import ConfigError
from serving.build import IndexConfig, SharedLists, build
from serving.candidates import SMALL, candidates, lists_for, shown_size
from serving.choose import choose
from serving.curve import Curve, Setting, fastest, frontier
from serving.export import export
from serving.tune import ann_recall

RNG = np.random.default_rng(5)
D = 32


def clustered(count, *, groups=400, spread=0.3, seed=0):
    """Unit vectors around a few hundred directions, which inverted lists find at once."""
    random = np.random.default_rng(seed)
    centre = np.random.default_rng(9).normal(size=(groups, D))
    drawn = centre[random.integers(groups, size=count)] + spread * random.normal(size=(count, D))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


DOCUMENTS = clustered(30_000)
QUERIES = clustered(200, seed=1)


@pytest.fixture(scope="module")
def choice():
    return choose(DOCUMENTS, QUERIES, IndexConfig(target_recall=0.95, k=10, device="cpu"), "cosine")


def test_inverted_lists_beat_a_full_scan_of_clustered_vectors(choice):
    assert choice.met is True
    assert choice.factory.startswith("IVF")
    flat, chosen = choice.curve.settings[0], choice.curve.settings[choice.curve.chosen]
    assert flat.factory == "Flat"
    assert chosen.queries_per_second > 2 * flat.queries_per_second


def test_the_chosen_setting_has_its_recall_when_measured_again(choice):
    chosen = choice.curve.settings[choice.curve.chosen]
    again = ann_recall(choice.index, QUERIES, DOCUMENTS, 10)
    assert again == choice.ann_recall == chosen.ann_recall >= 0.95
    assert chosen.parameters == choice.parameters


def test_every_family_is_in_the_curve_or_left_out_with_a_reason(choice):
    measured = {setting.factory for setting in choice.curve.settings}
    left_out = {left.factory for left in choice.curve.left_out}
    fitting, _ = candidates(len(DOCUMENTS), D, None, "cpu")
    assert measured | left_out == {candidate.factory for candidate in fitting}
    assert all(left.reason for left in choice.curve.left_out)


def test_a_target_out_of_reach_within_the_memory_is_said():
    config = IndexConfig(target_recall=0.999, k=10, memory="1100kB", device="cpu")
    vectors = RNG.normal(size=(30_000, D)).astype(np.float32)
    choice = choose(vectors, vectors[:50] + np.float32(0.3), config, "dot")
    assert choice.met is False
    assert choice.ann_recall < 0.999
    assert choice.ann_recall == max(setting.ann_recall for setting in choice.curve.settings)
    assert "no setting reaches index.target_recall 0.999" in choice.note
    assert choice.note.endswith("; raise index.memory or lower the target")
    assert choice.index.stored_bytes <= 1_100_000


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"factory": "SQ8"}, "remove index.factory to have one chosen or lower the target"),
        (
            {"factory": "IVF16,SQ8", "search": {"nprobe": 1}, "memory": "1GB"},
            "remove index.search to have it tuned or remove index.factory to have one chosen or lower "
            "the target",
        ),
    ],
)
def test_advice_on_a_target_out_of_reach_names_only_what_is_set(given, advice):
    config = IndexConfig(target_recall=1.0, k=10, device="cpu", **given)
    vectors = RNG.normal(size=(2_000, D)).astype(np.float32)
    choice = choose(vectors, vectors[:50] + np.float32(0.3), config, "dot")
    assert choice.met is False
    assert choice.note.endswith(f"tuning queries; {advice}")


def test_sizes_are_said_in_the_unit_that_shows_them():
    shown = [shown_size(size) for size in (0, 1, 999, 1_500, 960_000, 1_040_000, 27_150_000, 512_000_000)]
    assert shown == ["0 bytes", "1 byte", "999 bytes", "1.5 kB", "960 kB", "1.0 MB", "27.1 MB", "512 MB"]
    assert shown_size(5_120_000_000) == "5,120 MB"


def test_memory_leaves_out_what_does_not_fit_and_says_how_much_it_takes():
    fitting, left_out = candidates(1_000_000, 128, 300_000_000, "cpu")
    assert {candidate.factory for candidate in fitting} == {
        "SQ8",
        "IVF4096,SQ8",
        "IVF4096,PQ64x4fsr,Refine(SQ8)",
    }
    reasons = {left.factory: left.reason for left in left_out}
    assert reasons["Flat"] == "about 512 MB, over index.memory"
    assert "HNSW32" in reasons


def test_a_memory_that_holds_nothing_is_refused_with_what_the_smallest_takes():
    config = IndexConfig(target_recall=0.9, memory="10kB", device="cpu")
    with pytest.raises(ConfigError, match=r"10,000 bytes holds no index of 30,000 × 32.*SQ8 about 960 kB"):
        choose(DOCUMENTS, QUERIES, config, "cosine")


def test_a_named_index_larger_than_the_memory_is_refused():
    for config in (IndexConfig(memory="1MB"), IndexConfig(factory="Flat", memory="1MB", target_recall=0.9)):
        with pytest.raises(ConfigError, match=r"'Flat' takes .* over index.memory 1,000,000"):
            choose(DOCUMENTS, QUERIES, config, "cosine")


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF256,Flat", "IVF256,SQ8,RFlat", "HNSW32"])
def test_estimates_of_memory_are_those_of_the_built_index(factory):
    vectors = DOCUMENTS[:SMALL]
    estimated = {
        candidate.factory: candidate.size
        for memory in (None, 4 * vectors.size - 1)
        for candidate in candidates(len(vectors), D, memory, "cpu")[0]
    }
    built = build(vectors, IndexConfig(factory=factory), "cosine").stored_bytes
    assert estimated[factory] == pytest.approx(built, rel=0.05)


def test_few_documents_are_scanned():
    assert [candidate.factory for candidate in candidates(SMALL - 1, 64, None, "cpu")[0]] == ["Flat"]
    choice = choose(DOCUMENTS[:500], QUERIES, IndexConfig(target_recall=0.98, device="cpu"), "cosine")
    assert (choice.factory, choice.met, choice.ann_recall) == ("Flat", True, 1.0)


def test_lists_grow_with_the_root_of_the_corpus_and_are_never_thin():
    assert [lists_for(count) for count in (10_000, 100_000, 1_000_000)] == [256, 1024, 4096]
    assert all(count / lists_for(count) >= 39 for count in range(SMALL, 200_000, 1_000))


def test_a_gpu_is_asked_only_for_what_it_has():
    factories = {candidate.factory for candidate in candidates(1_000_000, 128, None, "gpu")[0]}
    assert not any("fs" in factory or "RFlat" in factory or "HNSW" in factory for factory in factories)


def test_an_odd_dimension_has_no_fast_scan():
    assert not any("fs" in item.factory for item in candidates(100_000, 33, None, "cpu")[0])


def test_lists_are_trained_once_for_all_families():
    shared = SharedLists()
    first = build(DOCUMENTS, IndexConfig(factory="IVF64,Flat"), "cosine", shared)
    centroids = shared.centroids[64].copy()
    second = build(DOCUMENTS, IndexConfig(factory="IVF64,SQ8,RFlat"), "cosine", shared)
    assert list(shared.centroids) == [64]
    np.testing.assert_array_equal(centroids, shared.centroids[64])
    first.set_parameters({"nprobe": 64})
    second.set_parameters({"nprobe": 64, "k_factor_rf": 8})
    for index in (first, second):
        assert ann_recall(index, QUERIES, DOCUMENTS, 10) > 0.99


def test_a_factory_with_a_target_is_tuned_and_no_other_is_built():
    config = IndexConfig(factory="IVF64,Flat", target_recall=0.9, k=10)
    choice = choose(DOCUMENTS, QUERIES, config, "cosine")
    assert {setting.factory for setting in choice.curve.settings} == {"IVF64,Flat"}
    assert choice.met is True


def test_without_a_target_nothing_is_tuned():
    choice = choose(DOCUMENTS, QUERIES, IndexConfig(k=10), "cosine")
    assert (choice.factory, choice.parameters, choice.curve, choice.met) == ("Flat", {}, None, None)


def test_fixed_parameters_need_a_factory():
    with pytest.raises(ValueError, match="name its factory"):
        IndexConfig(target_recall=0.9, search={"nprobe": 3})


@pytest.fixture(scope="module")
def exported(make, tmp_path_factory):
    """A shop exported twice with an automatic choice."""
    root = tmp_path_factory.mktemp("auto")
    make.examples(root / "examples")
    make.checkpoint(root / "checkpoint", root / "examples", make.towers_config())
    config = IndexConfig(target_recall=0.9, k=5)
    paths = (root / "examples", root / "checkpoint", None)
    return [export(*paths, root / name, config) for name in ("one", "two")]


def test_a_bundle_holds_its_curve_as_table_and_plot(exported):
    bundle = exported[0]
    recorded = bundle.content["measured"]["index_curve"]
    assert json.loads((bundle.path / "index" / "curve.json").read_text()) == recorded
    assert (bundle.path / "index" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert recorded["settings"][recorded["chosen"]]["factory"] == bundle.content["index"]["factory"] == "Flat"
    assert bundle.content["index"]["ann_recall"]["target_met_when_tuned"] is True


def test_timings_are_no_part_of_a_bundles_identity(exported):
    first, second = exported
    assert first.content["measured"] != second.content["measured"]
    assert first.digest == second.digest


def test_a_damaged_curve_is_noticed_all_the_same(exported):
    path = exported[1].path
    (path / "index" / "curve.json").write_text("{}")
    with pytest.raises(Exception, match=r"curve\.json"):
        Artifact.read(path, verify=True)


def setting(factory, recall, speed):
    return Setting(factory, {"nprobe": 1}, recall, speed, 1e6 / speed, 1.0, 1.0)


def test_the_frontier_holds_what_no_other_beats():
    settings = [setting("a", 0.9, 100), setting("a", 0.95, 50), setting("a", 0.93, 40), setting("a", 0.8, 90)]
    assert [item.ann_recall for item in frontier(settings)] == [0.9, 0.95]


def test_the_fastest_with_the_target_comes_before_the_more_exact():
    settings = [setting("a", 0.96, 70), setting("b", 0.95, 80), setting("b", 0.99, 10), setting("b", 0.9, 99)]
    assert fastest(settings, 0.95).queries_per_second == 80
    assert fastest(settings, 0.995).ann_recall == 0.99


def test_a_table_shows_each_family_once_and_marks_the_choice(tmp_path):
    curve = Curve(0.95, 10, 7, [setting("a", 0.96, 70), setting("b", 0.97, 80), setting("c", 0.5, 9)], 1, [])
    _, rows = curve.table()
    assert [(row[0], row[1]) for row in rows] == [("", "a"), ("→", "b"), ("", "c")]
    assert rows[2][3] == "0.5000 (below)"
    replace(curve, settings=curve.settings[:1], chosen=0).write(tmp_path)  # a single point is drawn too
    assert pd.read_json(tmp_path / "curve.json", typ="series")["k"] == 10
