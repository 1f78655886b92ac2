from dataclasses import replace

import pytest

from features.errors import ArtifactError
from pipelines.comparison import read_evaluation
from pipelines.config import PromoteConfig
from pipelines.promote import baseline_objections, promote
from serving.store import Store

GOOD = {"towers": 0.50, "random": 0.01, "popularity": 0.30}


def decide(store, bundle, metric="nDCG@10", **options):
    return promote(store, *bundle, metric, PromoteConfig(**options))


def champion(store):
    return Store(store).champion()


def test_the_first_bundle_that_beats_the_baselines_becomes_champion(tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, "a", GOOD)
    decision = decide(tmp_path, bundle)
    assert decision.promoted
    assert decision.changed
    assert champion(tmp_path).bundle_id == bundle[0]
    assert champion(tmp_path).reason == decision.reason
    assert decision.reason == "nDCG@10 0.5000; the store had no champion"


def test_a_bundle_that_does_not_beat_popularity_is_refused_with_the_numbers(tmp_path, make_bundle):
    decision = decide(tmp_path, make_bundle(tmp_path, "a", {**GOOD, "popularity": 0.50}))
    assert not decision.promoted
    assert champion(tmp_path) is None
    assert "does not beat popularity (paired difference" in decision.reason


def test_what_chance_could_explain_is_not_beaten(tmp_path, make_bundle):
    _, evaluation = make_bundle(tmp_path, "a", GOOD)
    challenger = read_evaluation(evaluation)
    assert baseline_objections(challenger, "nDCG@10", ["popularity"]) == []
    of_one_query = {**challenger.against("popularity", "nDCG@10"), "low": 0.2, "high": 0.2, "p": 1.0, "n": 1}
    (said,) = baseline_objections(replace(challenger, paired=[of_one_query]), "nDCG@10", ["popularity"])
    assert said == "does not beat popularity (paired difference +0.2000 [+0.2000, +0.2000], p 1.000, n 1)"


def test_a_required_baseline_that_was_not_measured_refuses(tmp_path, make_bundle):
    decision = decide(tmp_path, make_bundle(tmp_path, "a", GOOD), require_beats=("bm25",))
    assert not decision.promoted
    assert "baseline bm25 was not measured" in decision.reason


def test_a_metric_that_was_not_measured_refuses_and_names_those_that_were(tmp_path, make_bundle):
    decision = decide(tmp_path, make_bundle(tmp_path, "a", GOOD), metric="R@100")
    assert not decision.promoted
    assert "R@100 was not measured (there are: nDCG@10)" in decision.reason


def test_a_worse_bundle_does_not_replace_the_champion(tmp_path, make_bundle):
    first = make_bundle(tmp_path, "a", GOOD)
    decide(tmp_path, first)
    worse = decide(tmp_path, make_bundle(tmp_path, "b", {**GOOD, "towers": 0.45}))
    assert not worse.promoted
    assert "is worse: champion" in worse.reason
    assert "paired over 200 queries" in worse.reason
    assert champion(tmp_path).bundle_id == first[0]


def test_a_better_bundle_replaces_the_champion(tmp_path, make_bundle):
    decide(tmp_path, make_bundle(tmp_path, "a", GOOD))
    better = make_bundle(tmp_path, "b", {**GOOD, "towers": 0.55})
    assert decide(tmp_path, better).promoted
    assert champion(tmp_path).bundle_id == better[0]


def test_on_the_same_queries_a_small_certain_loss_is_worse(tmp_path, make_bundle):
    decide(tmp_path, make_bundle(tmp_path, "a", GOOD))
    assert not decide(tmp_path, make_bundle(tmp_path, "b", {**GOOD, "towers": 0.495})).promoted


def test_on_other_queries_only_intervals_that_do_not_touch_are_worse(tmp_path, make_bundle):
    decide(tmp_path, make_bundle(tmp_path, "a", GOOD))
    near = make_bundle(tmp_path, "b", {**GOOD, "towers": 0.499}, examples="other", seed=1)
    decision = decide(tmp_path, near)
    assert decision.promoted
    assert "on other test data, by intervals" in decision.reason
    far = make_bundle(tmp_path, "c", {**GOOD, "towers": 0.45}, examples="third", seed=2)
    assert not decide(tmp_path, far).promoted


def test_a_champion_without_evaluation_is_not_replaced_unseen(tmp_path, make_bundle):
    first = make_bundle(tmp_path, "a", GOOD)
    decide(tmp_path, first)
    (tmp_path / "exports" / "a.json").unlink()
    decision = decide(tmp_path, make_bundle(tmp_path, "b", GOOD))
    assert not decision.promoted
    assert "cannot be compared with champion" in decision.reason


def test_force_promotes_and_keeps_the_objections(tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, "a", {**GOOD, "popularity": 0.9})
    decision = decide(tmp_path, bundle, force=True)
    assert decision.promoted
    assert "forced in spite of this: does not beat popularity" in champion(tmp_path).reason


def test_the_champion_is_not_promoted_again(tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, "a", GOOD)
    decide(tmp_path, bundle)
    decision = decide(tmp_path, bundle)
    assert decision.promoted
    assert not decision.changed
    assert len(Store(tmp_path).history()) == 1


def test_a_damaged_pointer_is_not_taken_for_an_empty_store(tmp_path, make_bundle):
    bundle = make_bundle(tmp_path, "a", GOOD)
    (tmp_path / "champion.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        decide(tmp_path, bundle)


def test_what_was_rolled_back_is_not_promoted_again_by_the_next_run(tmp_path, make_bundle):
    first, second = make_bundle(tmp_path, "a", GOOD), make_bundle(tmp_path, "b", {**GOOD, "towers": 0.55})
    decide(tmp_path, first)
    decide(tmp_path, second)
    Store(tmp_path).roll_back()
    decision = decide(tmp_path, second)
    assert not decision.promoted
    assert "was the champion and was rolled back" in decision.reason
    assert decide(tmp_path, second, force=True).promoted


def test_keep_prunes_after_a_promotion_and_not_after_a_refusal(tmp_path, make_bundle):
    bundles = [make_bundle(tmp_path, name, GOOD, seed=seed) for seed, name in enumerate("abc")]
    decide(tmp_path, bundles[0], keep=0)
    assert Store(tmp_path).bundle_ids() == [bundles[0][0]]
