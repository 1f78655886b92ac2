import time
import tracemalloc

import numpy as np
import pytest

from towers.data import Catalogue, Lists
from towers.negatives import excluded_own, excluded_pairs, is_known, log_expected_columns


def catalogue(content: list[int], known: list[list[int]]) -> Catalogue:
    """Documents with these content codes; for each query key the contents that were clicked."""
    lengths = [len(contents) for contents in known]
    values = np.array([value for contents in known for value in sorted(contents)], dtype=np.int64)
    lists = Lists(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    share = np.full(len(content), 1 / len(content))
    return Catalogue(np.array(content), lists, share, share)


def naive(key: list[int], document: list[int], known: Catalogue) -> np.ndarray:
    rows = len(key)
    excluded = np.zeros((rows, len(document)), dtype=bool)
    for i in range(rows):
        for j in range(len(document)):
            excluded[i, j] = i != j and (
                barred(key[i], document[i], document[j], known) or (j < rows and key[i] == key[j])
            )
    return excluded


def barred(key: int, positive: int, document: int, known: Catalogue) -> bool:
    clicked = set(known.known.values[known.known.offsets[key] : known.known.offsets[key + 1]].tolist())
    content = known.content[document]
    return positive == document or content == known.content[positive] or content in clicked


@pytest.mark.parametrize("clicked", [0, 3])
@pytest.mark.parametrize("seed", range(5))
def test_mask_equals_the_naive_loops(clicked: int, seed: int) -> None:
    """Positives that are known, as in training data, and ones that are not."""
    random = np.random.default_rng(seed)
    content = random.integers(0, 15, 20).tolist()
    key, document = random.integers(0, 8, 12).tolist(), random.integers(0, 20, 30).tolist()
    known = [set(random.choice(15, clicked, replace=False).tolist()) for _ in range(8)]
    if seed > 2:
        for row in range(12):
            known[key[row]].add(content[document[row]])
    shop = catalogue(content, [list(contents) for contents in known])
    mask = excluded_pairs(np.array(key), np.array(document), shop).dense().numpy()
    assert np.array_equal(mask, naive(key, document, shop))


@pytest.mark.parametrize("seed", range(5))
def test_own_documents_are_excluded_like_columns(seed: int) -> None:
    random = np.random.default_rng(seed)
    content = random.integers(0, 15, 20).tolist()
    known = catalogue(content, [random.choice(15, 3, replace=False).tolist() for _ in range(8)])
    key, positive = random.integers(0, 8, 12), random.integers(0, 20, 12)
    own = random.integers(0, 20, (12, 4))
    expected = [[barred(key[i], positive[i], own[i, u], known) for u in range(4)] for i in range(12)]
    assert excluded_own(key, positive, own, known).tolist() == expected


def excluded(key: list[int], document: list[int], known: Catalogue) -> list[tuple[int, int]]:
    row, column = excluded_pairs(np.array(key), np.array(document), known).pairs()
    return list(zip(row.tolist(), column.tolist(), strict=True))


def test_the_same_document_is_not_its_own_negative() -> None:
    assert excluded([0, 1], [3, 3], catalogue([0, 1, 2, 3], [[], []])) == [(0, 1), (1, 0)]


def test_equal_content_under_another_id_is_not_a_negative() -> None:
    assert excluded([0, 1], [2, 3], catalogue([0, 1, 2, 2], [[], []])) == [(0, 1), (1, 0)]


def test_a_known_positive_of_the_query_is_not_its_negative_but_may_be_anothers() -> None:
    assert excluded([0, 1], [0, 1], catalogue([0, 1, 2, 3], [[0, 1], [1]])) == [(0, 1)]


def test_a_known_positive_is_excluded_among_further_columns_too() -> None:
    assert excluded([0, 1], [0, 1, 2, 3], catalogue([0, 1, 2, 3], [[0, 2], [1]])) == [(0, 2)]


def test_rows_of_equal_query_keys_are_not_each_others_negatives() -> None:
    assert excluded([5, 5], [0, 1], catalogue([0, 1], [[]] * 6)) == [(0, 1), (1, 0)]


def test_without_any_known_click_nothing_is_known() -> None:
    nothing = catalogue([0, 1], [[], []])
    assert is_known(np.array([0, 1]), np.array([0, 1]), nothing).tolist() == [False, False]


def test_log_q_is_the_log_of_the_expected_number_of_columns() -> None:
    """Simulated batches: B positives drawn by one share, M unclicked columns by another."""
    random = np.random.default_rng(0)
    positive, unclicked = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    known = Catalogue(np.arange(4), catalogue([0], [[]]).known, np.maximum(positive, 1e-9), unclicked)
    rows, extra, batches = 6, 12, 4000
    drawn = random.choice(4, (batches, rows), p=positive), random.choice(4, (batches, extra), p=unclicked)
    mean = sum(np.bincount(part.ravel(), minlength=4) for part in drawn) / batches
    columns = np.arange(rows + extra) % 4
    log_q = log_expected_columns(columns, rows, extra, known)
    assert np.exp(log_q) == pytest.approx(mean[columns], rel=0.05)


def test_log_q_counts_the_own_documents_that_a_row_sees_on_average() -> None:
    known = Catalogue(np.arange(2), catalogue([0], [[]]).known, np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    log_q = log_expected_columns(np.array([[0], [1]]), 2, 1.5, known)
    assert np.exp(log_q) == pytest.approx(np.array([[2 * 0.5], [2 * 0.5 + 1.5 * 1.0]]))


def test_a_large_batch_is_masked_in_memory_linear_in_it() -> None:
    """16,384 rows and 50 known positives a key; a bool matrix of them would have 268 MB."""
    random = np.random.default_rng(0)
    known = catalogue(list(range(50_000)), random.choice(50_000, (1000, 50)).tolist())
    key, document = random.integers(0, 1000, 16_384), random.integers(0, 50_000, 16_384)
    tracemalloc.start()
    started = time.perf_counter()
    mask = excluded_pairs(key, document, known)
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.counts.sum() > 16_384 * 15
    assert peak < 60e6
    assert seconds < 2


def test_a_batch_is_masked_within_milliseconds() -> None:
    """512 rows, 10 further columns each, 50 known positives a key: measured 10 ms, allowed 200 ms."""
    random = np.random.default_rng(0)
    known = catalogue(
        list(range(50_000)), [random.choice(50_000, 50, replace=False).tolist() for _ in range(1000)]
    )
    key, document = random.integers(0, 1000, 512), random.integers(0, 50_000, 512 * 11)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        excluded_pairs(key, document, known)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.2
