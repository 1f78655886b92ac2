import pytest
import torch

from towers.batch import Features, Ragged

LISTS = [[5, 6], [], [7], [1, 2, 3], []]


def ragged(lists: list[list[int]], *, weighted: bool = False) -> Ragged:
    values = torch.tensor([value for row in lists for value in row], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in lists])
    return Ragged.from_lengths(values, lengths, values.float() / 10 if weighted else None)


def as_lists(part: Ragged) -> list[list[int]]:
    return [part.values[a:b].tolist() for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)]


@pytest.mark.parametrize("rows", [[0], [4], [3, 0, 3], [1, 4], [], [4, 3, 2, 1, 0]])
def test_take_returns_the_lists_at_the_rows_in_order(rows):
    taken = ragged(LISTS, weighted=True).take(torch.tensor(rows, dtype=torch.int64))
    assert as_lists(taken) == [LISTS[row] for row in rows]
    assert torch.equal(taken.weights, taken.values.float() / 10)


def test_take_equals_a_naive_loop_on_random_lists():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 7, (200,), generator=generator)
    part = Ragged.from_lengths(torch.randint(0, 999, (int(lengths.sum()),), generator=generator), lengths)
    rows = torch.randint(0, 200, (500,), generator=generator)
    lists = as_lists(part)
    assert as_lists(part.take(rows)) == [lists[row] for row in rows.tolist()]


def test_rows_names_the_row_of_each_value():
    assert ragged(LISTS).rows().tolist() == [0, 0, 2, 3, 3, 3]


def test_concatenated_ragged_lists_keep_their_order_and_weights():
    joined = Ragged.concatenate([ragged(LISTS, weighted=True), ragged([[9], []], weighted=True)])
    assert as_lists(joined) == [*LISTS, [9], []]
    assert torch.equal(joined.weights, joined.values.float() / 10)


def test_concatenating_parts_with_and_without_weights_is_refused():
    with pytest.raises(ValueError, match="1 of 2 parts have weights"):
        Ragged.concatenate([ragged(LISTS), ragged(LISTS, weighted=True)])


def test_weights_must_match_the_values():
    with pytest.raises(ValueError, match="1 weights for 2 values"):
        Ragged(torch.tensor([1, 2]), torch.tensor([0, 2]), torch.ones(1))


def test_features_take_the_same_rows_of_every_part():
    features = Features({"x": torch.arange(10.0).view(5, 2)}, {"words": ragged(LISTS)})
    taken = features.take(torch.tensor([3, 1]))
    assert len(features) == 5
    assert len(taken) == 2
    assert taken.dense["x"].tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert as_lists(taken.ragged["words"]) == [[1, 2, 3], []]


def test_concatenated_features_split_back_into_their_parts():
    features = Features({"x": torch.arange(5.0)}, {"words": ragged(LISTS)})
    first, second = features.take(torch.tensor([0, 1])), features.take(torch.tensor([2, 3, 4]))
    joined = Features.concatenate([first, second])
    assert joined.dense["x"].tolist() == features.dense["x"].tolist()
    assert as_lists(joined.ragged["words"]) == LISTS


def test_features_with_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="disagree on the number of rows"):
        Features({"x": torch.zeros(4)}, {"words": ragged(LISTS)})


def test_features_without_a_tensor_are_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        Features()


def test_concatenating_features_of_different_names_is_refused():
    with pytest.raises(ValueError, match="same names"):
        Features.concatenate([Features({"x": torch.zeros(1)}), Features({"y": torch.zeros(1)})])


def test_moving_to_a_device_keeps_the_values():
    features = Features({"x": torch.arange(5.0)}, {"words": ragged(LISTS, weighted=True)}).to("cpu")
    assert as_lists(features.ragged["words"]) == LISTS
