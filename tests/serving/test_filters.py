import threading
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from serving.filters import MAX_SET, Catalogue, FilterError

DOCUMENTS = pd.DataFrame(
    {
        "doc_id": ["a", "b/ü", "c'\"", "d"],
        "brand": ["acme", None, "Acme", "zeta"],
        "price": [10.0, np.nan, 49.5, 50.0],
        "stock": [3, 0, 2**60, -1],
        "new": pd.Series([True, None, False, False], dtype=object),
        "cold": [True, False, False, True],
        "colour": [np.array(["red", "blue"], dtype=object), None, np.array([], dtype=object), ["red", None]],
        "sizes": [[36.5, 40.0], [41.0], None, []],
        "updated_at": pd.to_datetime(
            ["2026-01-01T00:00:00Z", None, "2026-02-01T12:00:00Z", "2026-03-01T00:00:00Z"], utc=True
        ).astype("datetime64[us, UTC]"),
        "never": pd.Series([None] * 4, dtype=object),
    }
)
CATALOGUE = Catalogue.build(DOCUMENTS)


def rows(filters, exclude=()):
    selection = CATALOGUE.select(filters, exclude)
    assert selection.count == selection.mask.sum()
    return np.flatnonzero(selection.mask).tolist()


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
        ({"brand": "acme"}, [0]),
        ({"brand": "acm"}, []),
        ({"brand": {"in": ["Acme", "zeta", "nobody"]}}, [2, 3]),
        ({"brand": {"in": []}}, []),
        ({"doc_id": "b/ü"}, [1]),
        ({"doc_id": {"in": ["c'\"", "d"]}}, [2, 3]),
        ({"price": 10}, [0]),
        ({"price": {"gte": 10, "lt": 50}}, [0, 2]),
        ({"price": {"gt": 10, "lte": 50}}, [2, 3]),
        ({"price": {"in": [50, 10.0]}}, [0, 3]),
        ({"price": {"lt": -1e300}}, []),
        ({"stock": 2**60}, [2]),
        ({"stock": 2**60 + 1}, []),  # not rounded to a float
        ({"stock": {"gt": 10**40}}, []),
        ({"stock": {"in": [0, 2**60 + 1]}}, [1]),
        ({"new": True}, [0]),
        ({"new": False}, [2, 3]),
        ({"cold": {"in": [True]}}, [0, 3]),
        ({"colour": "red"}, [0, 3]),
        ({"colour": {"in": ["blue", "green"]}}, [0]),
        ({"sizes": 41}, [1]),
        ({"sizes": {"gt": 38, "lt": 41}}, [0]),
        ({"updated_at": "2026-02-01T13:00:00+01:00"}, [2]),
        ({"updated_at": {"gte": "2026-01-15", "lt": "2026-03-01T00:00:00"}}, [2]),
        ({"updated_at": {"gte": datetime(2026, 2, 1, 12, tzinfo=UTC)}}, [2, 3]),
        ({"never": "x"}, []),
        ({"brand": "acme", "price": {"gte": 11}}, []),
        ({"colour": "red", "cold": True, "price": {"lte": 10}}, [0]),
    ],
)
def test_a_filter_keeps_the_documents_that_match_every_field(filters, wanted):
    assert rows(filters) == wanted


_CHOICES = {
    "whole": [2**53, 2**53 + 1, 2**60, 2**60 + 1, -(2**63), 2**63 - 1, 0, 3],
    "real": [0.0, -0.0, 0.1, 0.5, 3.0, 1e300, np.nan],
    "nullable": [0, 3, 4, None],
    "moment": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), None],
}
_WANTED = {
    "whole": [2**53 + 1, 2.0**60, 0, 2**63 - 1, 2.0**63, 2**70, 0.5],
    "real": [0, 0.1, 3, 1e300, 2**70, -1],
    "nullable": [3, 0.0, 0.5],
    "moment": ["2026-01-01", "2026-03-01"],
}


@pytest.mark.parametrize("kind", _CHOICES)
def test_a_set_finds_what_equals_one_of_its_values_and_nothing_is_rounded(kind):
    random = np.random.default_rng(0)
    held = [_CHOICES[kind][place] for place in random.integers(0, len(_CHOICES[kind]), 200)]
    column = pd.Series(held, dtype="Int64") if kind == "nullable" else pd.Series(held)
    catalogue = Catalogue.build(pd.DataFrame({"doc_id": [str(row) for row in range(200)], "field": column}))
    wanted = [
        datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value
        for value in _WANTED[kind]
    ]
    expected = [any(value == one for one in wanted) for value in held]
    assert catalogue.select({"field": {"in": _WANTED[kind]}}).mask.tolist() == expected
    assert 0 < sum(expected) < 200
    for one, value in zip(wanted, _WANTED[kind], strict=True):
        assert catalogue.select({"field": value}).mask.tolist() == [held_one == one for held_one in held]


def test_a_thousand_numbers_cost_about_as_much_as_one():
    count = 300_000
    frame = pd.DataFrame({"doc_id": np.arange(count).astype(str), "price": np.arange(count) / 2})
    catalogue = Catalogue.build(frame)
    many = {"price": {"in": [value + 0.5 for value in range(990)]}}

    def seconds(filters):
        catalogue.select(filters)  # the column is prepared at its first use
        started = time.process_time()
        for _ in range(10):
            catalogue.select(filters)
        return time.process_time() - started

    assert seconds(many) < 20 * seconds({"price": 1.5})


def test_excluded_documents_are_left_out_and_unknown_ids_change_nothing():
    assert rows({"cold": True}, ["d", "nobody", "b/ü", "d"]) == [0]
    selection = CATALOGUE.select(None, ["nobody", "d"])
    assert selection.excluded == ("d",)
    assert selection.count == 3


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"price": "10"}, 'filters.price: "10" is not a finite number'),
        ({"price": True}, "not a finite number"),
        ({"price": None}, "null is not a finite number"),
        ({"price": float("nan")}, "NaN is not a finite number"),
        ({"price": {"lt": float("inf")}}, "Infinity is not a finite number"),
        ({"price": 10**400}, "not a finite number"),
        ({"price": {"in": [1, float("nan")]}}, "NaN is not a finite number"),
        ({"price": [1, 2]}, "not a finite number"),
        ({"price": {"from": 1}}, '"from" is no condition'),
        ({"price": {}}, "give a value, a range"),
        ({"price": {"in": [1], "gt": 0}}, "cannot be combined"),
        ({"price": {"in": 5}}, "needs an array"),
        ({"brand": {"in": "acme"}}, "needs an array"),
        ({"brand": {"in": ["x"] * (MAX_SET + 1)}}, "at most"),
        ({"brand": 5}, "5 is not a string"),
        ({"brand": {"gte": "a"}}, "have no order"),
        ({"colour": 5}, "not a string"),
        ({"new": 1}, "not true or false"),
        ({"new": {"gt": False}}, "have no order"),
        ({"updated_at": 1767225600}, "not an ISO 8601 timestamp"),
        ({"updated_at": "yesterday"}, "not an ISO 8601 timestamp"),
        ({"updated_at": {"lt": "0001-01-01T00:00:00+14:00"}}, "not an ISO 8601 timestamp"),
        ({"sizes": "41"}, "not a finite number"),
    ],
)
def test_a_condition_of_the_wrong_type_is_refused_in_one_line(filters, said):
    with pytest.raises(FilterError, match=said.replace("(", r"\(")) as refusal:
        CATALOGUE.select(filters)
    assert refusal.value.code == "invalid_filter"
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_an_unknown_field_names_the_fields_there_are():
    with pytest.raises(FilterError, match=r'no field "colors"; allowed: doc_id, brand, price') as refusal:
        CATALOGUE.select({"colors": "red"})
    assert refusal.value.code == "unknown_field"


def test_what_parquet_gives_back_is_filtered_alike(tmp_path):
    DOCUMENTS.drop(columns="never").to_parquet(tmp_path / "documents.parquet")
    catalogue = Catalogue.build(pd.read_parquet(tmp_path / "documents.parquet"))
    for filters in (
        {"new": False},
        {"colour": "red"},
        {"sizes": {"gt": 36}},
        {"updated_at": {"lt": "2026-02-02"}},
    ):
        np.testing.assert_array_equal(catalogue.select(filters).mask, CATALOGUE.select(filters).mask)


def test_random_filters_agree_with_a_loop_over_the_documents():
    random = np.random.default_rng(0)
    count = 300
    frame = pd.DataFrame(
        {
            "doc_id": [f"d{row}" for row in range(count)],
            "word": random.choice(["a", "b", "c", None], count),
            "number": np.where(random.random(count) < 0.2, np.nan, random.integers(0, 9, count)),
            "tags": [list(random.choice(["x", "y", "z"], random.integers(0, 3))) for _ in range(count)],
        }
    )
    catalogue = Catalogue.build(frame)
    for _ in range(200):
        low, high = sorted(random.integers(0, 9, 2).tolist())
        word, tags = str(random.choice(["a", "b", "d"])), random.choice(["x", "y", "w"], 2).tolist()
        filters = {"word": word, "number": {"gte": low, "lt": high}, "tags": {"in": tags}}
        filters = {name: filters[name] for name in random.permutation(list(filters))[: random.integers(0, 4)]}
        checks = {
            "word": lambda row, word=word: row.word == word,
            "number": lambda row, low=low, high=high: low <= row.number < high,
            "tags": lambda row, tags=tags: any(tag in tags for tag in row.tags),
        }
        wanted = [all(checks[name](row) for name in filters) for row in frame.itertuples()]
        assert catalogue.select(filters).mask.tolist() == wanted


def test_many_threads_may_ask_for_the_first_time_at_once():
    catalogue = Catalogue.build(
        pd.concat([DOCUMENTS] * 50, ignore_index=True).assign(doc_id=[str(row) for row in range(200)])
    )
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(catalogue.select({"colour": "red"}).count))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [100] * 8
