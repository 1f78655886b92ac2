from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from features.artifact import publish
from features.errors import ConfigError, SchemaError
from towers.batch import Features, Ragged
from towers.collate import Batch, Batches, Draw, collate, distinct_rows, sample_lists
from towers.data import Lists, TrainingData, read_training_data
from towers.negatives import Source


@pytest.fixture(scope="module")
def data(coloured_things: Path) -> TrainingData:
    return read_training_data(coloured_things)


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else torch.equal(a.dense(), b.dense())
        for a, b in ((getattr(one, part.name), getattr(other, part.name)) for part in fields(Batch))
    )


def test_examples_are_read_as_codes(data: TrainingData, coloured_things: Path) -> None:
    table = pq.read_table(coloured_things / "train.parquet").to_pandas()
    assert data.documents["doc_id"].to_numpy()[data.document].tolist() == table["positive_doc_id"].tolist()
    assert data.queries["query_text"].to_numpy()[data.query].tolist() == table["query_text"].tolist()
    values, owner = data.unclicked.take(np.array([7, 3]))
    names = data.documents["doc_id"].to_numpy()[values].tolist()
    assert names == [*table["unclicked_doc_ids"][7], *table["unclicked_doc_ids"][3]]
    assert owner.tolist() == [0, 0, 1, 1]
    key = data.query_key[5]
    clicked = set(table[table["query_key"] == table["query_key"][5]]["positive_doc_id"])
    contents = data.catalogue.known.values[slice(*data.catalogue.known.offsets[[key, key + 1]])]
    assert {
        data.documents["doc_id"][np.flatnonzero(data.catalogue.content == c)[0]] for c in contents
    } == clicked


def rewritten(source: Path, target: Path, change: dict[str, pd.DataFrame]) -> Path:
    with publish(target, "examples", {}) as staging:
        for file in source.glob("*.parquet"):
            frame = change.get(file.stem)
            if frame is None:
                pq.write_table(pq.read_table(file), staging / file.name)
            else:
                frame.to_parquet(staging / file.name, index=False)
    return target


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("positive_doc_id", "nowhere", "positive_doc_id 'nowhere' is not in documents.parquet"),
        ("weight", 0.0, "weight must be a positive number"),
        ("weight", float("nan"), "weight must be a positive number"),
    ],
)
def test_examples_that_contradict_the_contract_are_refused(
    coloured_things: Path, tmp_path: Path, column: str, value: object, message: str
) -> None:
    train = pd.read_parquet(coloured_things / "train.parquet")
    train.loc[3, column] = value
    with pytest.raises(SchemaError, match=message):
        read_training_data(rewritten(coloured_things, tmp_path / "x", {"train": train}))


def test_no_training_rows_is_a_clear_error(coloured_things: Path, tmp_path: Path) -> None:
    train = pd.read_parquet(coloured_things / "train.parquet").head(0)
    with pytest.raises(SchemaError, match="no click lies before the cut"):
        read_training_data(rewritten(coloured_things, tmp_path / "x", {"train": train}))


def test_a_batch_points_at_its_positives_and_their_unclicked_documents(data: TrainingData) -> None:
    batch = Batches(data, 16, 1, "own", (0,)).batch(0)
    positives = batch.document_rows[batch.document_place].numpy()
    own = batch.document_rows[batch.own_place].numpy()
    assert own.shape == (16, 1)
    assert len(np.unique(batch.document_rows)) == len(batch.document_rows) < positives.size + own.size
    things = data.documents["doc_id"].str.split("-").str[1].to_numpy()
    assert not batch.own_excluded.any()
    assert (things[own[:, 0]] == things[positives]).all()  # the fixture shows other colours of the thing
    assert (own[:, 0] != positives).all()
    text = data.queries["query_text"].to_numpy()[batch.query_rows[batch.query_place].numpy()]
    titles = data.documents["title"].to_numpy()[positives]
    assert text.tolist() == titles.tolist()


def test_unclicked_documents_are_own_or_columns_by_scope_with_the_same_q(data: TrainingData) -> None:
    own, shared = (Batches(data, 16, 1, scope, (0,)).batch(0) for scope in ("own", "batch"))
    assert (len(own.document_place), own.own_place.shape) == (16, (16, 1))
    assert (len(shared.document_place), shared.own_place.shape) == (32, (16, 0))
    assert torch.equal(
        own.document_rows[own.own_place[:, 0]], shared.document_rows[shared.document_place[16:]]
    )
    assert shared.source.tolist() == [Source.IN_BATCH] * 16 + [Source.UNCLICKED] * 16
    assert own.own_source.flatten().tolist() == [Source.UNCLICKED] * 16
    share = data.catalogue.unclicked_share[own.document_rows[own.own_place].numpy()]
    difference = torch.exp(shared.log_q[16:]) - torch.exp(own.own_log_q[:, 0])
    assert difference.numpy() == pytest.approx(share[:, 0] * (16 - 1), rel=1e-3)  # 16 columns against 1


def test_own_documents_of_several_draws_lie_side_by_side(data: TrainingData) -> None:
    draws = [
        Draw(Source.UNCLICKED, np.array([5, 6, 7]), np.array([0, 2, 2])),
        Draw(Source.UNIFORM, np.array([1, 2]), None),
        Draw(Source.MINED, np.array([8, 9]), np.array([1, 2])),
    ]
    batch = collate(data, np.array([10, 20, 30]), draws)
    own = batch.document_rows[batch.own_place]
    positive = torch.from_numpy(data.document[[10, 20, 30]])
    assert own[0].tolist() == [5, positive[0], positive[0]]
    assert own[1].tolist() == [8, positive[1], positive[1]]
    assert own[2].tolist() == [6, 7, 9]
    assert batch.own_excluded[:2, 1:].all()
    assert batch.own_source[2].tolist() == [Source.UNCLICKED, Source.UNCLICKED, Source.MINED]
    assert batch.document_rows[batch.document_place].tolist() == [*positive.tolist(), 1, 2]
    assert batch.source[3:].tolist() == [Source.UNIFORM] * 2


def test_batches_are_the_same_for_the_same_seed_and_differ_otherwise(data: TrainingData) -> None:
    one, same, other = (Batches(data, 16, 1, "own", seed) for seed in ((1, 0), (1, 0), (2, 0)))
    assert equal(one.batch(30), same.batch(30))
    assert not equal(one.batch(30), other.batch(30))


def test_a_batch_does_not_depend_on_the_batches_before_it(data: TrainingData) -> None:
    walked, jumped = Batches(data, 16, 1, "own", (1,)), Batches(data, 16, 1, "own", (1,))
    for step in range(30):
        walked.batch(step)
    assert equal(walked.batch(30), jumped.batch(30))


def test_an_epoch_visits_each_example_once_but_the_short_last_batch(data: TrainingData) -> None:
    batches = Batches(data, 64, 0, "own", (0,))
    assert batches.per_epoch == len(data) // 64 == 6

    def visited(epoch: int) -> list[int]:
        seen = [batches.batch(epoch * 6 + step).query_rows.tolist() for step in range(6)]
        return [row for rows in seen for row in rows]

    first, second = visited(0), visited(1)
    assert len(set(first)) == len(first) == 384  # one impression an example, so rows are examples
    assert set(first) != set(second)
    assert batches.batch(0).query_rows.tolist() != batches.batch(6).query_rows.tolist()


def test_fewer_examples_than_a_batch_is_an_error_with_both_numbers(data: TrainingData) -> None:
    with pytest.raises(ConfigError, match="batch_size is 512 but there are only 400 training examples"):
        Batches(data, 512, 0, "own", (0,))


def test_sampling_takes_distinct_values_of_each_list_and_no_more_than_it_has() -> None:
    lists = Lists(np.arange(10, 20), np.array([0, 5, 5, 6, 10]))
    drawn = set()
    for seed in range(40):
        values, owner = sample_lists(lists, np.array([3, 1, 0, 2]), 2, np.random.default_rng(seed))
        assert owner.tolist() == [0, 0, 2, 2, 3]
        assert len(set(values.tolist())) == 5
        assert set(values[:2].tolist()) <= {16, 17, 18, 19}
        assert set(values[2:4].tolist()) <= {10, 11, 12, 13, 14}
        assert values[4] == 15
        drawn |= set(values.tolist())
    assert drawn == set(range(10, 20))


def test_rows_that_an_encoder_cannot_tell_apart_are_found() -> None:
    features = Features(
        {"x": torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])},
        {
            "words": Ragged(
                torch.tensor([1, 2, 1, 2, 1, 2, 2, 1, 1, 2]),
                torch.tensor([0, 2, 4, 6, 8, 8, 10]),
                torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
            )
        },
    )
    first, group = distinct_rows(features)
    assert first.tolist() == [0, 2, 3, 4, 5]
    assert group.tolist() == [0, 0, 1, 2, 3, 4]


def test_a_row_repeated_in_a_batch_is_encoded_once(data: TrainingData) -> None:
    batch = Batches(data, 64, 2, "batch", (0,)).batch(0)
    assert len(batch.document_place) == 64 * 3
    assert len(batch.document_rows) <= len(data.documents) == 60
