"""The probe: one fixed batch of training examples, measured throughout a training.

Shapes: B queries, N documents, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from towers.collapse import alignment, mean_gap, mean_length, spread, uniformity
from towers.collate import Batch, Batches
from towers.data import TrainingData
from towers.hardest import hardest_negatives
from towers.leaving import ProbeConfig
from towers.losses import CrossEntropy, CrossEntropyConfig, Loss
from towers.step import Inputs
from towers.two_tower import TwoTower

_NUMBER = 2**31  # no stage has this number, so the probe's rows are drawn apart from theirs


@dataclass(frozen=True)
class Probe:
    """The batch, and what to encode for it."""

    batch: Batch
    inputs: Inputs

    def measure(self, model: TwoTower, loss: Loss) -> dict[str, float]:
        """Encode the batch in evaluation mode and measure it; the model's mode is restored.

        Args:
            model: Its weights do not change.
            loss: The stage's objective.

        Returns:
            `loss`: the objective. `cross_entropy`: at the configured first temperature, in nats, the same
            measure in every stage. `gap`: mean of positive minus hardest negative in units of a score of
            equal vectors (absent without negatives). `alignment`, `uniformity` (the mean of queries' and
            documents'): see `towers.collapse`. `query_std`, `document_std`: the spread of distinct vectors.
        """
        training = model.training
        model.eval()
        with torch.inference_mode():
            query_QD, document_VD = self._encode(model)
            query_BD, document_ND = query_QD[self.batch.query_place], document_VD[self.batch.document_place]
            measured = self._objectives(model, loss, query_BD @ document_ND.T)
            gap = mean_gap(hardest_negatives(query_BD, document_ND, self.batch.excluded))
            if gap is not None:
                unit = mean_length(query_BD) * mean_length(document_ND)
                measured["gap"] = gap / max(unit, 1e-12)
            measured |= {
                "alignment": alignment(query_BD, document_ND[: len(query_BD)]),
                "uniformity": (uniformity(query_QD) + uniformity(document_VD)) / 2,
                "query_std": spread(query_QD),
                "document_std": spread(document_VD),
            }
        model.train(training)
        return measured

    def _encode(self, model: TwoTower) -> tuple[Tensor, Tensor]:
        device = self.batch.query_place.device
        queries = self.inputs.queries.take(self.batch.query_rows).to(device)
        documents = self.inputs.documents.take(self.batch.document_rows).to(device)
        return model.encode_queries(queries), model.encode_documents(documents)

    def _objectives(self, model: TwoTower, loss: Loss, score_BN: Tensor) -> dict[str, float]:
        excluded_BN, log_q = self.batch.excluded.dense(), self.batch.log_q
        plain = CrossEntropy(CrossEntropyConfig(log_q=False))
        value = loss(
            score_BN, excluded_BN, temperature=model.temperature, log_q_N=log_q, positive_BN=excluded_BN
        )
        fixed = plain(score_BN, excluded_BN, temperature=model.config.temperature)
        return {"loss": float(value), "cross_entropy": float(fixed)}


def build_probe(
    data: TrainingData, inputs: Inputs, config: ProbeConfig, seed: int, device: torch.device
) -> Probe:
    """Draw the probe's examples; in-batch negatives only.

    Args:
        data: Training rows.
        inputs: Every query and document, prepared.
        config: Its size.
        seed: Of the training.
        device: Where it is encoded.
    """
    rows = min(config.rows, len(data))
    return Probe(Batches(data, rows, 0, "own", (seed, _NUMBER)).batch(0).to(device), inputs)
