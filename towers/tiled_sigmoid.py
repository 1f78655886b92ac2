"""Sigmoid loss with memory linear in B, in one pass: no pair's term depends on another's.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i; U documents of each
query's own; R × C a tile.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from towers.exclusions import Exclusions
from towers.losses import OwnScores, SigmoidConfig
from towers.losses.matrix import weighted_mean, widened
from towers.tiles import Tiles, TilingConfig, check_tiled, positive_temperature, products_in, strips


@dataclass(frozen=True)
class _Setting:
    """What the pass needs beside embeddings and temperature; `weight` is (B,) with sum 1."""

    exclusions: Exclusions
    weight: Tensor
    bias: float
    tiling: TilingConfig


def tiled_sigmoid(
    config: SigmoidConfig,
    query_BD: Tensor,
    document_ND: Tensor,
    exclusions: Exclusions,
    *,
    temperature: float | Tensor,
    weight_B: Tensor | None = None,
    own: OwnScores | None = None,
    tiling: TilingConfig | None = None,
) -> Tensor:
    """Compute what `towers.losses.Sigmoid` computes of `query_BD @ document_ND.T`.

    Args:
        config: The prior.
        query_BD: Floating; computed in float32 or wider.
        document_ND: Like `query_BD`.
        exclusions: Pairs that may not be negatives.
        temperature: Divides scores; > 0.
        weight_B: Weight of each row, > 0; no gradient reaches it.
        own: Negatives of one query each; they enter its row.
        tiling: Size and precision of the tiles.

    Returns:
        Scalar, in nats a row.

    Raises:
        ValueError: If the shapes do not fit or the temperature is not positive.
        ConfigError: If the processor lacks the precision.
    """
    check_tiled(query_BD, document_ND, exclusions)
    query_BD, document_ND = widened(query_BD), widened(document_ND)
    rows = len(query_BD)
    temperature = positive_temperature(temperature, query_BD)
    documents = len(document_ND) + (0 if own is None else own.score_BU.shape[1])
    bias = -math.log(documents) if config.bias is None else config.bias
    weight_B = query_BD.new_ones(rows) if weight_B is None else weight_B.detach().to(query_BD.dtype)
    setting = _Setting(exclusions, weight_B / weight_B.sum(), bias, tiling or TilingConfig())
    negatives, positive_B = _Negatives.apply(  # type: ignore[no-untyped-call]
        query_BD, document_ND, temperature, setting
    )
    loss_B = softplus(-(positive_B / temperature + bias))
    if own is not None:
        own_BU = softplus(own.score_BU.to(query_BD.dtype) / temperature + bias)
        loss_B = loss_B + own_BU.masked_fill(own.excluded_BU, 0).sum(1)
    total: Tensor = weighted_mean(loss_B, weight_B) + negatives
    return total


class _Negatives(torch.autograd.Function):
    """The weighted sum of the negatives' terms, and the positives' scores.

    Gradients of the first are made with it and changed in place by the backward pass; another one through the
    same graph makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BD: Tensor, document_ND: Tensor, temperature: Tensor, setting: _Setting
    ) -> tuple[Tensor, Tensor]:
        rows = len(query_BD)
        tiles = Tiles(query_BD, document_ND, setting.exclusions, setting.tiling)
        with products_in(setting.tiling.precision, query_BD.device):
            total, ctx.gradients = _one_pass(tiles, temperature.item(), setting, any(ctx.needs_input_grad))
        ctx.save_for_backward(query_BD, document_ND, temperature)
        ctx.setting = setting
        return query_BD.new_tensor(total), torch.linalg.vecdot(query_BD, document_ND[:rows])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, positive_B: Tensor) -> tuple[Tensor | None, ...]:
        query_BD, document_ND, temperature = ctx.saved_tensors
        if ctx.gradients is None:
            tiles = Tiles(query_BD, document_ND, ctx.setting.exclusions, ctx.setting.tiling)
            with products_in(ctx.setting.tiling.precision, query_BD.device):
                _, ctx.gradients = _one_pass(tiles, temperature.item(), ctx.setting, differentiate=True)
        (query_gradient, document_gradient, slope), ctx.gradients = ctx.gradients, None
        query_gradient.mul_(total).addcmul_(document_ND[: len(query_BD)], positive_B[:, None])
        document_gradient.mul_(total)[: len(query_BD)].addcmul_(query_BD, positive_B[:, None])
        return query_gradient, document_gradient, total * slope, None


def _one_pass(
    tiles: Tiles, temperature: float, setting: _Setting, differentiate: bool
) -> tuple[float, tuple[Tensor, Tensor, float] | None]:
    """Return the sum and, where asked, the gradients of queries, documents and temperature."""
    query_BD, document_ND = torch.zeros_like(tiles.query), torch.zeros_like(tiles.document)
    total, slope, zero = 0.0, 0.0, tiles.query.new_zeros(())
    for rows in tiles.row_blocks():
        scaled_RD, gradient_RD, weight_R = (
            tiles.query[rows] / temperature,
            query_BD[rows],
            setting.weight[rows],
        )
        for tile in tiles.of(rows, scaled_RD):
            tile.score.add_(setting.bias)
            logit_RC = tile.exclude(-torch.inf)
            for strip in strips(logit_RC):
                logit_rC, term_rC = logit_RC[strip], tiles.like(logit_RC[strip])
                torch.logaddexp(logit_rC, zero, out=term_rC)  # softplus
                total += torch.dot(term_rC.sum(1), weight_R[strip]).item()
                if differentiate:
                    logit_rC.sigmoid_().mul_(weight_R[strip, None])
            if differentiate:  # the tile holds the gradient now
                gradient_RD.addmm_(tile.score, tiles.document[tile.columns])
                document_ND[tile.columns].addmm_(tile.score.T, scaled_RD)
        gradient_RD.div_(temperature)
        slope -= (gradient_RD * tiles.query[rows]).sum().item() / temperature
    return total, (query_BD, document_ND, slope) if differentiate else None
