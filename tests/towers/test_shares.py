import math

import pytest
import torch
from torch import Tensor

from towers.collate import Batch
from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, OwnScores, WeightedSumConfig
from towers.negatives import Source
from towers.shares import MOST_ROWS, loss_shares
from towers.step import Step

NOTHING = torch.empty(0, dtype=torch.int64)


def step_of(rows: int, width: int, own: int, seed: int = 0) -> Step:
    """A step with random vectors, masks, log Q and sources; row 0 has no allowed negative."""
    torch.manual_seed(seed)
    query, document = torch.randn(rows, 4), torch.randn(width, 4)
    excluded = torch.rand(rows, width) < 0.3
    excluded[0] = True
    source = torch.cat([torch.zeros(rows), torch.randint(1, 5, (width - rows,))]).long()
    own_excluded = torch.rand(rows, own) < 0.3
    own_excluded[0] = True
    own_log_q = torch.randn(rows, own)
    own_scores = OwnScores(torch.randn(rows, own), own_excluded, own_log_q) if own else None
    batch = Batch(
        query_rows=NOTHING,
        query_place=torch.arange(rows),
        document_rows=NOTHING,
        document_place=torch.arange(width),
        queued=torch.zeros(0, 4),
        excluded=Exclusions.from_mask(excluded),
        log_q=torch.randn(width),
        source=source,
        weight=torch.ones(rows),
        own_place=torch.zeros(rows, own, dtype=torch.int64),
        own_excluded=own_excluded,
        own_log_q=own_log_q,
        own_source=torch.randint(1, 4, (rows, own)),
    )
    return Step(0.0, 0.0, batch, query, document, own_scores)


def naive(step: Step, temperature: float, *, log_q: bool, hardest: bool) -> dict[str, float]:
    batch, excluded = step.batch, step.batch.excluded.dense()
    shares, rows = dict.fromkeys(Source, 0.0), 0
    for i in range(len(step.query)):
        logits: list[tuple[float, Source]] = []
        for j in range(len(step.document)):
            if j != i and not excluded[i, j]:
                logit = float(step.query[i] @ step.document[j]) / temperature
                logits.append((logit - log_q * float(batch.log_q[j]), Source(int(batch.source[j]))))
        for u in range(batch.own_place.shape[1]):
            if not batch.own_excluded[i, u] and step.own is not None and step.own.log_q_BU is not None:
                logit = float(step.own.score_BU[i, u]) / temperature
                kind = Source(int(batch.own_source[i, u]))
                logits.append((logit - log_q * float(step.own.log_q_BU[i, u]), kind))
        if not logits:
            continue
        rows += 1
        if hardest:
            shares[max(logits)[1]] += 1
        else:
            total = sum(math.exp(logit) for logit, _ in logits)
            for logit, kind in logits:
                shares[kind] += math.exp(logit) / total
    return {f"share_{kind.name.lower()}": value / rows for kind, value in shares.items()}


SUM = WeightedSumConfig(first=HingeConfig(), second=CrossEntropyConfig())


@pytest.mark.parametrize(
    ("loss", "log_q", "hardest"),
    [
        (CrossEntropyConfig(), True, False),
        (CrossEntropyConfig(log_q=False), False, False),
        (HingeConfig(), False, True),
        (SUM, False, True),
    ],
)
@pytest.mark.parametrize("own", [0, 3])
def test_shares_equal_the_naive_loops(loss: LossConfig, log_q: bool, hardest: bool, own: int) -> None:
    step = step_of(12, 30, own)
    found = loss_shares(step, loss, torch.tensor(0.7))
    assert found == pytest.approx(naive(step, 0.7, log_q=log_q, hardest=hardest), abs=1e-5)
    assert sum(found.values()) == pytest.approx(1)


def test_no_allowed_negative_anywhere_gives_no_shares() -> None:
    step = step_of(1, 1, 0)
    assert loss_shares(step, CrossEntropyConfig(), torch.tensor(1.0)) == {}


def test_a_large_batch_is_looked_at_through_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    softmax = Tensor.softmax

    def counted(logit: Tensor, dim: int) -> Tensor:
        looked.append(len(logit))
        return softmax(logit, dim)

    monkeypatch.setattr(Tensor, "softmax", counted)
    step = step_of(4 * MOST_ROWS, 4 * MOST_ROWS, 0)
    assert sum(loss_shares(step, CrossEntropyConfig(), torch.tensor(1.0)).values()) == pytest.approx(1)
    assert looked[0] <= MOST_ROWS
