"""How much of the loss each source of negatives makes up.

Shapes: B queries, N documents, N ≥ B, U documents of each query's own; R rows looked at, D embedding.
"""

import torch
from torch import Tensor

from towers.losses import HingeConfig, LossConfig, TripletConfig, WeightedSumConfig
from towers.negatives import Source
from towers.step import Step

MOST_ROWS = 512
"""At most so many rows of a batch are looked at, evenly spaced; the columns are all there."""


@torch.no_grad()
def loss_shares(step: Step, loss: LossConfig, temperature: Tensor) -> dict[str, float]:
    """Return the share of each source that the batch has, `share_<source>`; they sum to 1.

    Under a hinge or triplets the hardest negative is what counts most: the share of the rows whose hardest
    allowed negative is from the source. Under any other objective it is the source's share of the negatives'
    part of the row softmax, `Σ_j∈source exp(s_ij / temperature - log Q_j)` over the same sum of all
    negatives, averaged over the rows; log Q as the objective has it. Of a weighted sum its first objective
    decides.

    Args:
        step: What was computed.
        loss: Its objective.
        temperature: Of the towers.

    Returns:
        Nothing where no row has an allowed negative.
    """
    while isinstance(loss, WeightedSumConfig):
        loss = loss.first
    logit_RX, source_RX = _negatives(step, temperature, log_q=getattr(loss, "log_q", False))
    kept = logit_RX.amax(1) > -torch.inf
    if not kept.any():
        return {}
    logit_RX, source_RX = logit_RX[kept], source_RX[kept]
    if isinstance(loss, HingeConfig | TripletConfig):
        mass_RX = torch.zeros_like(logit_RX).scatter_(1, logit_RX.argmax(1, keepdim=True), 1.0)
    else:
        mass_RX = logit_RX.softmax(1)
    shares = torch.zeros(len(Source), dtype=torch.float64, device=mass_RX.device)
    shares.index_add_(0, source_RX.flatten(), mass_RX.double().flatten())
    present = set(step.batch.source.tolist()) | set(step.batch.own_source[~step.batch.own_excluded].tolist())
    return {
        f"share_{source.name.lower()}": float(shares[source]) / len(logit_RX)
        for source in Source
        if source in present
    }


def _negatives(step: Step, temperature: Tensor, *, log_q: bool) -> tuple[Tensor, Tensor]:
    """Return logits, -∞ where a row may not have the column, and sources of R rows: (R, N + U) each."""
    batch = step.batch
    count = len(batch)
    rows = torch.unique(torch.linspace(0, count - 1, min(count, MOST_ROWS), device=step.query.device).long())
    logit_RN = step.query[rows] @ step.document.T / temperature
    barred_RN = torch.zeros_like(logit_RN, dtype=torch.bool)
    barred_RN[torch.arange(len(rows), device=rows.device), rows] = True
    starts, lengths = batch.excluded.offsets[rows], batch.excluded.counts[rows]
    place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
    within = torch.arange(len(place), device=rows.device) - (lengths.cumsum(0) - lengths)[place]
    barred_RN[place, batch.excluded.columns[starts[place] + within]] = True
    if log_q:
        logit_RN = logit_RN - batch.log_q
    logit_RX, barred_RX = logit_RN, barred_RN
    source_RX = batch.source.expand(len(rows), -1)
    if step.own is not None:
        own_RU = step.own.score_BU[rows] / temperature
        if log_q and step.own.log_q_BU is not None:
            own_RU = own_RU - step.own.log_q_BU[rows]
        logit_RX = torch.cat([logit_RN, own_RU], 1)
        barred_RX = torch.cat([barred_RN, step.own.excluded_BU[rows]], 1)
        source_RX = torch.cat([source_RX, batch.own_source[rows]], 1)
    return logit_RX.masked_fill(barred_RX, -torch.inf), source_RX
