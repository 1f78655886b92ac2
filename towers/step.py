"""One optimiser step: collated batch in, updated weights and a measurable result out.

Shapes: B queries, N documents, N ≥ B, D embedding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from features.errors import TrainingError
from towers.batch import Features
from towers.collapse import separation, spread
from towers.collate import Batch
from towers.losses import Loss
from towers.two_tower import TwoTower


@dataclass(frozen=True)
class Inputs:
    """Every query and document of a training, prepared once; they stay on the CPU."""

    queries: Features
    documents: Features


@dataclass(frozen=True)
class Step:
    """What one optimiser step computed, for those who measure it.

    Attributes:
        loss: Before the update.
        gradient_norm: Before clipping.
        batch: What went in.
        score: (B, N) raw scores.
        query: (B, D) embeddings.
        document: (N, D) embeddings.
    """

    loss: float
    gradient_norm: float
    batch: Batch
    score: Tensor
    query: Tensor
    document: Tensor


def take_step(
    model: TwoTower,
    inputs: Inputs,
    batch: Batch,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    gradient_clip: float | None,
) -> Step:
    """Encode, score, compute the objective and update the weights.

    Args:
        model: In training mode; changed in place.
        inputs: Prepared queries and documents.
        batch: Which of them, and what may not be a negative.
        loss: The objective.
        optimizer: Holds every trainable parameter of the model; its learning rate is set.
        gradient_clip: Largest gradient norm; `None` clips nothing.

    Raises:
        TrainingError: If the loss or the gradient is not finite; the weights are then unchanged.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    query_BD = model.encode_queries(inputs.queries.take(batch.query_rows).to(device))
    document_ND = model.encode_documents(inputs.documents.take(batch.document_rows).to(device))
    query_BD = query_BD.index_select(0, batch.query_place)
    document_ND = document_ND.index_select(0, batch.document_place)
    score_BN = model.score(query_BD, document_ND)
    value = loss(
        score_BN, batch.excluded, temperature=model.temperature, log_q_N=batch.log_q, weight_B=batch.weight
    )
    _require_finite("loss", value.item())
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip or math.inf).item()
    _require_finite("gradient norm", norm)
    optimizer.step()
    return Step(value.item(), norm, batch, score_BN.detach(), query_BD.detach(), document_ND.detach())


def measure(step: Step) -> dict[str, float]:
    """Return the numbers of a step's point on the training curve.

    Returns:
        `loss`, `gradient_norm`, `gap` and `hardest_unclicked` (see `towers.collapse.separation`; absent where
        no row has a negative), `query_std` and `document_std`, and the mean number of allowed negatives a row
        has by source: `in_batch_negatives`, `unclicked_negatives`.
    """
    rows = len(step.batch.excluded)
    allowed_BN = ~step.batch.excluded
    in_batch = int(allowed_BN[:, :rows].sum()) - rows
    return {
        "loss": step.loss,
        "gradient_norm": step.gradient_norm,
        **separation(step.score, step.batch.excluded),
        "query_std": spread(step.query),
        "document_std": spread(step.document),
        "in_batch_negatives": in_batch / rows,
        "unclicked_negatives": int(allowed_BN[:, rows:].sum()) / rows,
    }


def _require_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"the {what} is {value}")
