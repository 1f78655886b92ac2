import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.metrics import Judgements, Metric, list_auc, parse_metric, per_query

NAMES = ["R@1", "R@3", "R@10", "Success@1", "Success@4", "RR@2", "RR@10", "nDCG@1", "nDCG@3", "nDCG@10"]
NAMES += ["P@1", "P@5", "AP@2", "AP@10", "R(rel=2)@3", "Success(rel=2)@3", "RR(rel=2)@10", "AP(rel=2)@10"]


def judge(grades: list[dict[int, float]]) -> Judgements:
    """Judgements of queries given as {document row: grade}."""
    pairs = [(q, d, g) for q, row in enumerate(grades) for d, g in row.items()]
    query, document, grade = (np.array(column) for column in zip(*pairs, strict=True))
    return Judgements(
        len(grades), query.astype(np.int64), document.astype(np.int64), grade.astype(np.float64)
    )


def by_ir_measures(name: str, grades: list[dict[int, float]], ranked: np.ndarray) -> list[float]:
    qrels = [ir_measures.Qrel(str(q), str(d), int(g)) for q, row in enumerate(grades) for d, g in row.items()]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), float(-rank))
        for q, row in enumerate(ranked.tolist())
        for rank, d in enumerate(row)
        if d >= 0
    ]
    measured = ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, run)
    values = {result.query_id: result.value for result in measured}
    return [values[str(q)] for q in range(len(grades))]


def by_us(name: str, grades: list[dict[int, float]], ranked: np.ndarray) -> np.ndarray:
    judgements = judge(grades)
    return per_query(parse_metric(name), judgements.gains(ranked), judgements)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_graded_case_equals_ir_measures(name):
    grades = [{0: 3, 1: 2, 2: 0, 7: 1, 9: 2}, {5: 2}, {3: 1, 4: 2, 11: -1}]
    ranked = np.array([[2, 1, 8, 0, 7, 6], [1, 2, 3, 4, 6, 5], [11, 4, 3, 0, 1, 2]])
    np.testing.assert_allclose(by_us(name, grades, ranked), by_ir_measures(name, grades, ranked), atol=1e-12)


@st.composite
def cases(draw):
    documents = draw(st.integers(1, 14))
    queries = draw(st.integers(1, 4))
    grade = st.integers(-1, 3)
    grades = []
    for _ in range(queries):
        row = draw(st.dictionaries(st.integers(0, documents - 1), grade, max_size=documents))
        row[draw(st.integers(0, documents - 1))] = 2  # at least one relevant document at every threshold
        grades.append(row)
    depth = draw(st.integers(1, documents))
    ranked = [draw(st.permutations(range(documents)))[:depth] for _ in range(queries)]
    return grades, np.array(ranked)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(NAMES))
def test_random_graded_cases_equal_ir_measures(case, name):
    grades, ranked = case
    np.testing.assert_allclose(by_us(name, grades, ranked), by_ir_measures(name, grades, ranked), atol=1e-12)


def test_recall_is_the_share_of_relevant_documents_found_not_whether_any_was():
    grades, ranked = [{0: 1, 1: 1, 2: 1, 3: 1}], np.array([[0, 9, 8]])
    assert by_us("R@3", grades, ranked) == [0.25]
    assert by_us("Success@3", grades, ranked) == [1.0]


def test_the_gain_of_ndcg_is_the_grade_and_not_its_power_of_two():
    value = by_us("nDCG@2", [{0: 3, 1: 1}], np.array([[1, 0]]))
    assert value == pytest.approx((1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3)))


def test_fractional_grades_are_relevant_when_positive():
    assert by_us("R@1", [{0: 0.25, 1: 0.5}], np.array([[0, 1]])) == [0.5]


def test_a_query_without_relevant_documents_has_no_value():
    judgements = Judgements(2, np.array([0, 1]), np.array([0, 0]), np.array([1.0, 0.0]))
    ranked = np.array([[0], [0]])
    for name in NAMES[:14]:
        first, second = per_query(parse_metric(name), judgements.gains(ranked), judgements)
        assert np.isfinite(first)
        assert np.isnan(second)


def test_a_threshold_leaves_out_queries_that_do_not_reach_it():
    value = by_us("R(rel=100)@2", [{0: 100, 1: 10}, {0: 10}], np.array([[1, 2], [0, 1]]))
    assert value[0] == 0.0
    assert np.isnan(value[1])


def test_empty_ranks_earn_nothing():
    ranked = np.array([[0, -1, -1], [-1, -1, -1]])
    assert by_us("R@3", [{0: 1, 1: 1}, {0: 1, 1: 1}], ranked).tolist() == [0.5, 0.0]


def test_judgements_of_some_queries_are_renumbered():
    judgements = judge([{0: 1}, {4: 2, 5: 1}, {6: 1}])
    some = judgements.take(np.array([1, 2]))
    assert some.queries == 2
    assert some.query.tolist() == [0, 0, 1]
    assert some.document.tolist() == [4, 5, 6]


def naive_auc(score: list[float], clicked: list[bool]) -> float:
    pairs = [(s, u) for s, c in zip(score, clicked, strict=True) if c
             for u, d in zip(score, clicked, strict=True) if not d]  # fmt: skip
    return sum(1.0 if s > u else 0.5 if s == u else 0.0 for s, u in pairs) / len(pairs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8), min_size=1, max_size=5))
def test_list_auc_equals_counting_the_pairs_of_each_list(lists):
    score = np.array([s for row in lists for s, _ in row], dtype=np.float64)
    clicked = np.array([c for row in lists for _, c in row], dtype=bool)
    start = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    for row, value in zip(lists, list_auc(score, clicked, start), strict=True):
        labels = [c for _, c in row]
        if any(labels) and not all(labels):
            assert value == pytest.approx(naive_auc([s for s, _ in row], labels))
        else:
            assert np.isnan(value)


def test_equal_scores_give_an_auc_of_one_half():
    assert list_auc(np.zeros(4), np.array([True, False, False, True]), np.array([0, 4])) == [0.5]


@pytest.mark.parametrize("name", ["R@10", "nDCG@10", "RR@3", "Success@1", "P@5", "AP@100", "R(rel=100)@10"])
def test_a_name_reads_back_as_written_and_as_ir_measures_writes_it(name):
    assert str(parse_metric(name)) == name == str(ir_measures.parse_measure(name))


def test_a_metric_has_its_parts():
    assert parse_metric("R(rel=100)@10") == Metric("R", 10, 100)


@pytest.mark.parametrize(
    "name",
    ["", "nDCG", "nDCG@0", "ndcg@10", "Recall@10", "R@-1", "R@ten", "nDCG(rel=2)@10", "R(rel=0)@5", "R@5 "],
)
def test_another_name_is_refused_in_one_line_that_shows_it(name):
    with pytest.raises(ValueError, match=r"metric|rel must") as caught:
        parse_metric(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)
