import pytest

from towers.metrics import EvaluationError
from towers.verdict import verdict


def row(
    system: str, value: float, *, width: float = 0.01, metric: str = "nDCG@10", part: str = "all"
) -> dict:
    interval = {"low": value - width, "high": value + width, "n": 100}
    return {"system": system, "slice": part, "metric": metric, "value": value, **interval}


def pair(system: str, p: float = 0.001, *, metric: str = "nDCG@10") -> dict:
    interval = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": p, "n": 100}
    return {"a": "towers", "b": system, "slice": "all", "metric": metric, **interval}


BASELINES = ("random", "popularity", "bm25")
PAIRS = [pair(system) for system in BASELINES]


def test_towers_above_every_baseline_pass():
    rows = [row("towers", 0.5), row("random", 0.1), row("popularity", 0.3), row("bm25", 0.4)]
    judged = verdict(rows, PAIRS, "nDCG@10")
    assert judged["passed"]
    assert judged["beaten"] == {"nDCG@10": ["random", "popularity", "bm25"]}
    assert judged["not_beaten"] == {"nDCG@10": []}
    assert judged["sentence"] == (
        "The towers (0.500 [0.490, 0.510]) beat random, popularity, bm25 on nDCG@10, n=100."
    )


def test_intervals_that_touch_are_not_a_win_and_the_sentence_says_so():
    rows = [row("towers", 0.5), row("random", 0.1), row("popularity", 0.3), row("bm25", 0.48)]
    judged = verdict(rows, PAIRS, "nDCG@10")
    assert not judged["passed"]
    assert judged["not_beaten"] == {"nDCG@10": ["bm25"]}
    assert "do not beat bm25 (0.480 [0.470, 0.490]) on nDCG@10" in judged["sentence"]
    assert "They beat random, popularity" in judged["sentence"]


def test_a_gain_that_may_be_chance_is_not_a_win():
    rows = [row("towers", 0.5, width=0.0), *(row(system, 0.1, width=0.0) for system in BASELINES)]
    judged = verdict(rows, [pair(system, p=1.0) for system in BASELINES], "nDCG@10")
    assert not judged["passed"]
    assert judged["beaten"] == {"nDCG@10": []}


def test_a_loss_is_named_as_plainly_as_a_tie():
    rows = [row("towers", 0.2), row("random", 0.1), row("popularity", 0.3), row("bm25", 0.4)]
    assert "do not beat popularity" in verdict(rows, PAIRS, "nDCG@10")["sentence"]


def test_a_baseline_that_was_not_measured_is_not_beaten():
    judged = verdict([row("towers", 0.5), row("random", 0.1)], [pair("random")], "nDCG@10")
    assert not judged["passed"]
    assert "Not compared with popularity, bm25, which they must beat." in judged["sentence"]


def test_ctr_is_reported_but_need_not_be_beaten():
    rows = [row("towers", 0.5), row("ctr", 0.6), *(row(system, 0.1) for system in BASELINES)]
    judged = verdict(rows, [*PAIRS, pair("ctr")], "nDCG@10")
    assert judged["passed"]
    assert judged["not_beaten"] == {"nDCG@10": ["ctr"]}
    assert "do not beat ctr" in judged["sentence"]


def test_every_metric_has_its_own_list_and_slices_have_no_say():
    rows = [row("towers", 0.5), row("random", 0.1), row("towers", 0.1, metric="R@10")]
    rows += [
        row("random", 0.3, metric="R@10"),
        row("towers", 0.0, part="tail"),
        row("random", 0.9, part="tail"),
    ]
    judged = verdict(rows, [pair("random"), pair("random", metric="R@10")], "nDCG@10")
    assert judged["beaten"] == {"nDCG@10": ["random"], "R@10": []}
    assert judged["not_beaten"] == {"nDCG@10": [], "R@10": ["random"]}


@pytest.mark.parametrize("part", ["all", "tail"])
def test_a_number_that_is_none_is_never_silent(part):
    rows = [row("towers", 0.5), row("random", 0.1), row("bm25", float("nan"), part=part)]
    with pytest.raises(EvaluationError, match=rf"nDCG@10 of bm25 on slice {part} is not a finite number"):
        verdict(rows, [pair("random"), pair("bm25")], "nDCG@10")


def test_a_paired_test_that_is_no_number_is_never_silent():
    with pytest.raises(EvaluationError, match=r"paired test of towers and random.*not a finite number"):
        verdict([row("towers", 0.5), row("random", 0.1)], [pair("random", float("nan"))], "nDCG@10")


def test_without_the_metric_nothing_is_said_of_the_towers():
    judged = verdict([row("random", 0.1)], [], "nDCG@10")
    assert not judged["passed"]
    assert judged["sentence"] == "The towers have no nDCG@10: nothing can be said of them."
