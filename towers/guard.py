"""The alarm: whether every score has become equal.

A hinge with the hardest negative on a fresh model, or on a sudden huge batch, learns that the cheapest way to
fear no negative is to make every vector the same. The loss is then the margin and the gradient next to
nothing, and it stays there. Loss ≈ margin alone proves nothing, since a large batch always has a negative
that hard, so three signs must meet, for so many steps in a row:

1. the spread of a dimension is far below 1 / √D (times the vectors' length);
2. positives do not beat their hardest negatives, nor lose to them: the gap is about 0;
3. the loss is what the objective gives where all scores are equal (for a hinge: its margin).

They are read on the first rows of the training batch, cheapest sign first.

Shapes: S rows of the batch that are looked at, D embedding.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from features.config import Config
from towers.collapse import mean_gap, mean_length, spread
from towers.distributed import Ranks
from towers.exclusions import Exclusions
from towers.hardest import hardest_negatives
from towers.losses import Loss, LossConfig
from towers.losses.weighted_sum import WeightedSumConfig
from towers.step import Step


class GuardConfig(Config):
    """When the alarm rings, and the way back."""

    steps: int = Field(20, ge=1, description="All three signs must be seen in so many steps in a row.")
    rows: int = Field(256, ge=2, description="Rows of the batch that are looked at.")
    loss_tolerance: float = Field(
        0.05, gt=0, lt=1, description="Share of the loss of equal scores by which the loss may differ."
    )
    gap_tolerance: float = Field(
        0.01, gt=0, description="Largest gap that counts as none, in units of a score of equal vectors."
    )
    spread: float = Field(
        0.1, gt=0, lt=1, description="Share of 1 / √D below which a dimension's deviation is a collapse."
    )
    healthy_spread: float = Field(
        0.3, gt=0, le=1, description="Share of 1 / √D above which a state is worth going back to."
    )
    healthy_every: int = Field(50, ge=1, description="Steps between such states; a stage's start is one.")
    retries: int = Field(3, ge=0, description="Ways back in one stage; then the training fails.")
    learning_rate_factor: float = Field(
        0.5, gt=0, le=1, description="What each way back multiplies the stage's learning rate by."
    )
    recovery_steps: int = Field(
        200, ge=1, description="Most steps of cross-entropy on the way back; it ends once separated."
    )
    uniform_negatives: float = Field(
        0.5,
        ge=0,
        description="Uniform negatives that each batch on the way back has beside those of its stage, as a "
        "share of its size; twice as many on the second way back, and so on. 0 adds none.",
    )


@dataclass(frozen=True)
class Look:
    """What the guard looks at: the first rows of a batch and their positives.

    Attributes:
        query: (S, D) embeddings.
        document: (S, D) embeddings of the rows' positives.
        excluded: Of these rows and columns.
        temperature: Divides scores in the loss.
        log_q: (S,) log Q of these documents in the batch.
    """

    query: Tensor
    document: Tensor
    excluded: Exclusions
    temperature: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Signs:
    """The three signs, measured.

    Attributes:
        spread: Of the less spread tower, in units of 1 / √D times the vectors' length.
        gap: Mean of positive minus hardest negative, in units of a score of equal vectors; 0 where no row has
            a negative.
        loss: Of the rows looked at.
        equal: What the loss would be if all their scores were equal.
    """

    spread: float
    gap: float
    loss: float
    equal: float

    def collapsed(self, config: GuardConfig) -> bool:
        """Return whether all three are there."""
        return (
            self.spread < config.spread
            and abs(self.gap) <= config.gap_tolerance
            and abs(self.loss - self.equal) <= config.loss_tolerance * abs(self.equal)
        )


def watched(loss: LossConfig, progress: float | None = None) -> bool:
    """Return whether an objective can collapse: it has a margin.

    A softmax or a sigmoid of equal scores has a gradient that parts them; fresh towers begin there.

    Args:
        loss: Any objective.
        progress: Share of the stage's steps that are done, by which a part of a weighted sum counts or does
            not; `None`: at any time.
    """
    if not isinstance(loss, WeightedSumConfig):
        return "margin" in type(loss).model_fields
    if progress is None:
        return watched(loss.first) or watched(loss.second)
    return any(watched(part) for _, part in loss.parts(progress))


def look_at(step: Step, temperature: Tensor, rows: int) -> Look:
    """Return the first rows of a step's batch, at most `rows` of them."""
    rows = min(rows, len(step.query))
    row, column = step.batch.excluded.block(0, rows)
    kept = column < rows
    excluded = Exclusions.from_pairs(row[kept], column[kept], rows, rows)
    return Look(
        step.query[:rows], step.document[:rows], excluded, temperature.detach(), step.batch.log_q[:rows]
    )


@torch.no_grad()
def relative_spread(look: Look) -> float:
    """Return the spread of the less spread tower in units of 1 / √D times its vectors' length.

    Vectors shorter than 1 count as of length 1: under a dot product a collapse may also shrink them to 0.
    """
    found = min(
        spread(vectors) * math.sqrt(vectors.shape[1]) / max(mean_length(vectors), 1.0)
        for vectors in (look.query, look.document)
    )
    return Ranks.of_group().agreed({"spread": found})["spread"]


@torch.no_grad()
def signs_of(look: Look, loss: Loss, relative: float) -> Signs:
    """Measure the signs; `relative` is `relative_spread` of the same rows."""
    unit = max(mean_length(look.query) * mean_length(look.document), 1.0)
    gap = mean_gap(hardest_negatives(look.query, look.document, look.excluded))
    score_SS, excluded_SS = look.query @ look.document.T, look.excluded.dense()
    equal_SS = score_SS.mean().expand_as(score_SS).contiguous()
    loss_of, equal = (
        float(
            loss(
                scores,
                excluded_SS,
                temperature=look.temperature,
                log_q_N=look.log_q,
                positive_BN=excluded_SS,
            )
        )
        for scores in (score_SS, equal_SS)
    )
    found = {"gap": 0.0 if gap is None else gap / unit, "loss": loss_of, "equal": equal}
    return Signs(spread=relative, **Ranks.of_group().agreed(found))
