import time

import numpy as np
import pytest

from towers.data import Catalogue, Lists
from towers.negatives import Scope, excluded_pairs, log_expected_columns


def catalogue(content: list[int], known: list[list[int]]) -> Catalogue:
    """Documents with these content codes; for each query key the contents that were clicked."""
    lengths = [len(contents) for contents in known]
    values = np.array([value for contents in known for value in sorted(contents)], dtype=np.int64)
    lists = Lists(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    share = np.full(len(content), 1 / len(content))
    return Catalogue(np.array(content), lists, share, share)


def naive(
    key: list[int], document: list[int], owner: list[int], known: Catalogue, scope: Scope
) -> np.ndarray:
    rows = len(key)
    excluded = np.zeros((rows, len(document)), dtype=bool)
    for i in range(rows):
        clicked = set(
            known.known.values[known.known.offsets[key[i]] : known.known.offsets[key[i] + 1]].tolist()
        )
        for j in range(len(document)):
            content = known.content[document[j]]
            excluded[i, j] = i != j and (
                document[i] == document[j]
                or content == known.content[document[i]]
                or content in clicked
                or (j < rows and key[i] == key[j])
                or (j >= rows and scope == "own" and owner[j - rows] != i)
            )
    return excluded


@pytest.mark.parametrize("scope", ["own", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_mask_equals_the_naive_loops(scope: Scope, seed: int) -> None:
    random = np.random.default_rng(seed)
    content = random.integers(0, 15, 20).tolist()
    known = catalogue(content, [random.choice(15, 3, replace=False).tolist() for _ in range(8)])
    key, document = random.integers(0, 8, 12).tolist(), random.integers(0, 20, 30).tolist()
    owner = random.integers(0, 12, 18).tolist()
    mask = excluded_pairs(np.array(key), np.array(document), np.array(owner), known, scope)
    assert np.array_equal(mask, naive(key, document, owner, known, scope))


def excluded(
    key: list[int], document: list[int], known: Catalogue, owner: list[int], scope: Scope
) -> list[tuple[int, int]]:
    mask = excluded_pairs(np.array(key), np.array(document), np.array(owner, dtype=np.int64), known, scope)
    return [(int(i), int(j)) for i, j in np.argwhere(mask)]


def test_the_same_document_is_not_its_own_negative() -> None:
    assert excluded([0, 1], [3, 3], catalogue([0, 1, 2, 3], [[], []]), [], "own") == [(0, 1), (1, 0)]


def test_equal_content_under_another_id_is_not_a_negative() -> None:
    assert excluded([0, 1], [2, 3], catalogue([0, 1, 2, 2], [[], []]), [], "own") == [(0, 1), (1, 0)]


def test_a_known_positive_of_the_query_is_not_its_negative_but_may_be_anothers() -> None:
    known = catalogue([0, 1, 2, 3], [[0, 1], [1]])
    assert excluded([0, 1], [0, 1], known, [], "own") == [(0, 1)]


def test_a_known_positive_is_excluded_among_unclicked_columns_too() -> None:
    known = catalogue([0, 1, 2, 3], [[0, 2], [1]])
    assert excluded([0, 1], [0, 1, 2, 3], known, [1, 0], "batch") == [(0, 2)]


def test_rows_of_equal_query_keys_are_not_each_others_negatives() -> None:
    assert excluded([5, 5], [0, 1], catalogue([0, 1], [[]] * 6), [], "own") == [(0, 1), (1, 0)]


def test_an_unclicked_document_is_seen_by_its_own_query_only_or_by_all() -> None:
    known = catalogue([0, 1, 2, 3], [[], []])
    assert excluded([0, 1], [0, 1, 2, 3], known, [0, 1], "own") == [(0, 3), (1, 2)]
    assert excluded([0, 1], [0, 1, 2, 3], known, [0, 1], "batch") == []


def test_log_q_is_the_log_of_the_expected_number_of_columns() -> None:
    """Simulated batches: B positives drawn by one share, M unclicked columns by another."""
    random = np.random.default_rng(0)
    positive, unclicked = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    known = Catalogue(np.arange(4), catalogue([0], [[]]).known, np.maximum(positive, 1e-9), unclicked)
    rows, extra, batches = 6, 12, 4000
    drawn = random.choice(4, (batches, rows), p=positive), random.choice(4, (batches, extra), p=unclicked)
    mean = sum(np.bincount(part.ravel(), minlength=4) for part in drawn) / batches
    columns = np.arange(rows + extra) % 4
    log_q = log_expected_columns(columns, rows, "batch", known)
    assert np.exp(log_q) == pytest.approx(mean[columns], rel=0.05)


def test_log_q_under_own_scope_counts_only_the_columns_that_a_row_sees() -> None:
    known = Catalogue(np.arange(2), catalogue([0], [[]]).known, np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    log_q = log_expected_columns(np.array([0, 1, 1, 1, 1, 1]), 2, "own", known)
    assert np.exp(log_q[:2]) == pytest.approx([2 * 0.5, 2 * 0.5 + 2 * 1.0])


def test_a_large_batch_is_masked_within_milliseconds() -> None:
    """512 rows, 10 unclicked columns each, 50 known positives a key: measured 10 ms, allowed 200 ms."""
    random = np.random.default_rng(0)
    known = catalogue(
        list(range(50_000)), [random.choice(50_000, 50, replace=False).tolist() for _ in range(1000)]
    )
    key, document = random.integers(0, 1000, 512), random.integers(0, 50_000, 512 * 11)
    owner = np.repeat(np.arange(512), 10)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        excluded_pairs(key, document, owner, known, "batch")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.2
