"""What `twotower study` varies: the trainings that are compared, all of equal compute."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from features.config import Config
from towers.schedule import StageConfig


class CollapseStudyConfig(Config):
    """Sizes of `twotower study collapse`; compute is counted in pairs: examples through both towers."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=2, description="Each training is done with each.")
    pairs: int = Field(81_920, ge=1000, description="Pairs that every training sees, at any batch size.")
    batches: tuple[int, ...] = Field(
        (32, 256, 1024, 4096),
        min_length=3,
        description="Batch sizes, growing: of the hinge from scratch, and of the staged growth.",
    )
    compared: int = Field(1024, ge=2, description="Batch size at which the objectives are compared.")
    warm_up: float = Field(
        0.25, gt=0, lt=1, description="Share of the pairs for cross-entropy before a hinge or a growth."
    )
    margin: float = Field(0.2, gt=0, description="Of every hinge.")
    learning_rate: float = Field(5e-3, gt=0, description="Of every stage, without decay.")

    def arms(self) -> dict[str, list[StageConfig]]:
        """Return the stages of each training by its name, in the order in which they are reported."""
        hinge, softmax = {"kind": "hinge", "margin": self.margin}, {"kind": "cross_entropy"}
        both = {"kind": "weighted_sum", "first": softmax, "second": hinge}
        small, large, at = self.batches[1], self.batches[-1], self.compared
        warm, rest = self.warm_up, 1 - self.warm_up
        even = 1 / len(self.batches)
        grown = [(hinge, size, rest / (len(self.batches) - 1)) for size in self.batches[1:]]
        plans: dict[str, list[tuple[Mapping[str, Any], int, float]]] = {
            **{f"hinge from scratch, {size}": [(hinge, size, 1.0)] for size in self.batches},
            f"hinge alone, grown to {large}": [(hinge, size, even) for size in self.batches],
            f"cross-entropy {small}, jump to hinge {large}": [(softmax, small, warm), (hinge, large, rest)],
            f"cross-entropy {small}, hinge grown to {large}": [(softmax, small, warm), *grown],
            f"cross-entropy, {at}": [(softmax, at, 1.0)],
            f"cross-entropy then hinge, {at}": [(softmax, at, 0.5), (hinge, at, 0.5)],
            f"sum of both, {at}": [(both | {"weight_from": 0.5, "weight_to": 0.5}, at, 1.0)],
            f"sum with a ramp, {at}": [(both | {"weight_from": 0.0, "weight_to": 1.0}, at, 1.0)],
        }
        return {
            name: [self._stage(number, *part) for number, part in enumerate(plan)]
            for name, plan in plans.items()
        }

    def guarded(self) -> str:
        """Return the arm that is repeated with the guard on."""
        return f"hinge from scratch, {self.compared}"

    def _stage(self, number: int, loss: Mapping[str, Any], batch_size: int, share: float) -> StageConfig:
        return StageConfig.model_validate(
            {
                "name": f"{number} {loss['kind']} {batch_size}",
                "loss": loss,
                "batch_size": batch_size,
                "steps": max(1, round(share * self.pairs / batch_size)),
                "learning_rate": self.learning_rate,
                "decay": "none",
                "enter": None,
            }
        )
