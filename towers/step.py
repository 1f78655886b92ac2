"""One optimiser step: collated batch in, updated weights and a measurable result out.

Shapes: B queries, N documents, N ≥ B, U documents of each query's own, D embedding; V distinct rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from features.errors import TrainingError
from towers.batch import Features
from towers.collapse import mean_gap, spread
from towers.collate import Batch
from towers.distributed import Ranks
from towers.grad_cache import Chunk, Encode, encoded, forward, forward_backward, split
from towers.hardest import Hardest, hardest_negatives
from towers.losses import OwnScores
from towers.negatives import Source
from towers.objective import Objective
from towers.parts import Scored
from towers.two_tower import TwoTower


@dataclass(frozen=True)
class Inputs:
    """Every query and document of a training, prepared once; they stay on the CPU."""

    queries: Features
    documents: Features


@dataclass(frozen=True)
class Means:
    """How a step is computed; none of it but the clipping changes the result beyond rounding.

    Attributes:
        gradient_clip: Largest gradient norm; `None` clips nothing.
        encode_rows: Rows encoded at once, with their gradient cached; `None` encodes all and keeps the graph.
        ranks: The processes that share the encoding.
    """

    gradient_clip: float | None = None
    encode_rows: int | None = None
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Step:
    """What one optimiser step computed, for those who measure it.

    Attributes:
        loss: Before the update.
        gradient_norm: Before clipping.
        batch: What went in.
        query: (B, D) embeddings, whose inner products are scores.
        document: (N, D) embeddings.
        own: Scores of each query's own documents, where there are any.
    """

    loss: float
    gradient_norm: float
    batch: Batch
    query: Tensor
    document: Tensor
    own: OwnScores | None


@dataclass(frozen=True)
class _Encoding:
    """Vectors of distinct rows, cut from the graph that made them.

    Attributes:
        vectors: (V, D) a leaf, of all ranks.
        push: Adds to the weights' gradients what the leaf's gradient makes of this rank's rows.
    """

    vectors: Tensor
    push: Callable[[], None]


def take_step(
    model: TwoTower,
    inputs: Inputs,
    batch: Batch,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    means: Means,
) -> Step:
    """Encode, score, compute the objective and update the weights.

    Args:
        model: In training mode; changed in place. Equal on all ranks.
        inputs: Prepared queries and documents.
        batch: Which of them, and what may not be a negative. Equal on all ranks.
        objective: What to minimise.
        optimizer: Holds every trainable parameter of the model; its learning rate is set.
        means: How to compute it.

    Raises:
        TrainingError: If the loss or the gradient is not finite; the weights are then unchanged.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    optimizer.zero_grad(set_to_none=True)
    queries = _encode(model.encode_queries, inputs.queries, batch.query_rows, means, model)
    documents = _encode(model.encode_documents, inputs.documents, batch.document_rows, means, model)
    query_BD = queries.vectors.index_select(0, batch.query_place)
    document_ND = documents.vectors.index_select(0, batch.document_place)
    if len(batch.queued) > 0:
        document_ND = torch.cat([document_ND, batch.queued])
    own = _own_scores(query_BD, documents.vectors, batch)
    scored = Scored(query_BD, document_ND, batch.excluded, model.temperature, batch.log_q, batch.weight, own)
    value = objective(scored, means.ranks)
    torch.autograd.backward(value)
    loss = means.ranks.sum_parts(value, [queries.vectors, documents.vectors])
    _require_finite("loss", loss)
    queries.push()
    documents.push()
    means.ranks.sum_gradients(model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), means.gradient_clip or math.inf).item()
    _require_finite("gradient norm", norm)
    optimizer.step()
    if own is not None:
        own = OwnScores(own.score_BU.detach(), own.excluded_BU, own.log_q_BU)
    return Step(loss, norm, batch, query_BD.detach(), document_ND.detach(), own)


def _encode(encode: Encode, features: Features, rows: Tensor, means: Means, model: TwoTower) -> _Encoding:
    """Encode distinct rows: whole or in chunks, and those of the other ranks by them."""
    device, ranks = next(model.parameters()).device, means.ranks
    if means.encode_rows is None and ranks.size == 1:
        chunks = [Chunk(0, rows, None)]
    else:
        chunks = split(rows, means.encode_rows or math.ceil(len(rows) / ranks.size))
    mine = ranks.share(chunks)
    if means.encode_rows is None:
        graphs = [encoded(encode, features, chunk, device) for chunk in mine]
        local = [graph.detach() for graph in graphs]
    else:
        local = forward(encode, features, mine, device)
    lengths = [sum(len(chunk.rows) for chunk in ranks.share(chunks, rank)) for rank in range(ranks.size)]
    nothing = torch.empty(0, model.dimension, device=device)
    leaf = ranks.gather(torch.cat([nothing, *local]), lengths).requires_grad_()

    def push() -> None:
        gradient_VD = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if means.encode_rows is None:
            if graphs:
                torch.autograd.backward(graphs, [gradient_VD[chunk.first : chunk.end] for chunk in mine])
        else:
            forward_backward(encode, features, mine, gradient_VD)

    return _Encoding(leaf, push)


def _own_scores(query_BD: Tensor, document_VD: Tensor, batch: Batch) -> OwnScores | None:
    if batch.own_place.shape[1] == 0:
        return None
    own_BUD = document_VD.index_select(0, batch.own_place.flatten()).view(*batch.own_place.shape, -1)
    score_BU = torch.einsum("bd,bud->bu", query_BD, own_BUD)
    return OwnScores(score_BU, batch.own_excluded, batch.own_log_q)


def measure(step: Step) -> dict[str, float]:
    """Return the numbers of a step's point on the training curve.

    Returns:
        `loss`, `gradient_norm`; `gap`, the mean of s⁺ - max s⁻, and `hardest_<source>`, the share of rows
        whose hardest negative came from there (unclicked ones, and others that there are; all absent where no
        row has a negative); `query_std` and `document_std`, and the mean number of allowed negatives a row
        has from each source: `in_batch_negatives`, `unclicked_negatives`, and others that there are.
    """
    hardest = hardest_negatives(step.query, step.document, step.batch.excluded, step.own)
    return {
        "loss": step.loss,
        "gradient_norm": step.gradient_norm,
        **_separation(hardest, _sources(step.batch, hardest.column_B)),
        "query_std": spread(step.query),
        "document_std": spread(step.document),
        **_allowed_negatives(step.batch),
    }


def _separation(hardest: Hardest, source_B: Tensor) -> dict[str, float]:
    gap = mean_gap(hardest)
    if gap is None:
        return {}
    kept = hardest.negative_B > -torch.inf
    share = torch.bincount(source_B[kept], minlength=len(Source)) / int(kept.sum())
    shares = {
        f"hardest_{kind.name.lower()}": float(share[kind])
        for kind in Source
        if kind == Source.UNCLICKED or (kind != Source.IN_BATCH and share[kind] > 0)
    }
    return {"gap": gap, **shares}


def _sources(batch: Batch, column_B: Tensor) -> Tensor:
    """Return the source of one column of each row; column N + u is the row's own document u."""
    width, own = len(batch.source), batch.own_source.shape[1]
    shared_B = batch.source[column_B.clamp(max=width - 1)]
    if own == 0:
        return shared_B
    own_B = batch.own_source.gather(1, (column_B - width).clamp(min=0)[:, None])[:, 0]
    return torch.where(column_B < width, shared_B, own_B)


def _allowed_negatives(batch: Batch) -> dict[str, float]:
    """Return the mean number of negatives of a row from each source."""
    kinds, rows = len(Source), len(batch)
    count = rows * torch.bincount(batch.source, minlength=kinds)
    count -= torch.bincount(batch.source[batch.excluded.columns], minlength=kinds)
    count += torch.bincount(batch.own_source[~batch.own_excluded], minlength=kinds)
    count[Source.IN_BATCH] -= rows  # the positives
    return {
        f"{kind.name.lower()}_negatives": int(count[kind]) / rows
        for kind in Source
        if kind in (Source.IN_BATCH, Source.UNCLICKED) or count[kind] > 0
    }


def _require_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"the {what} is {value}")
