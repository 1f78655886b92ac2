"""Mid-training state on disk: whole or absent, verified on load, and enough to go on bit for bit.

`<target>.progress/step-<n>/` is an artifact with `model.safetensors`, `best.safetensors` (the best weights so
far, where there are any), `optimizer.safetensors` (moments by parameter name, and the random state) and
`state.json` (stage, step, best so far, curve). The last two are kept.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.artifact import Artifact, publish, write_json
from features.errors import ArtifactError
from towers.record import Recorder

KIND = "training-progress"
KEPT = 2


@dataclass
class Progress:
    """Where a training stands. Changed in place by the loop.

    Attributes:
        stage: Number of the current stage, from 0.
        step: Optimiser steps done in this stage; with the seed this is the data position.
        total: Optimiser steps done in all stages.
        stale: Validations since the last better one, in this stage.
        best: Best validation so far: `value`, `stage`, `step` (over all stages); `None` before the first.
        curve: One entry per measurement.
        validations: One entry per validation.
        stages: One entry per finished stage: `name`, `steps`, `reason`.
    """

    stage: int = 0
    step: int = 0
    total: int = 0
    stale: int = 0
    best: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)


Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of the weights on the CPU, each shared tensor once, under its first name."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in _distinct(model)}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy weights into a model of the same shape, in place.

    Raises:
        ArtifactError: If names or shapes differ.
    """
    own = dict(_distinct(model))
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise ArtifactError(
            "the saved weights belong to other towers; remove the progress directory and train again"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _distinct(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


class Checkpoints:
    """The progress directory of one training."""

    def __init__(self, target: Path, configuration: str, record: Recorder) -> None:
        """Prepare.

        Args:
            target: Where the finished artifact will be.
            configuration: Digest of everything that decides the result; other progress is not resumed.
            record: Told of what is resumed, damaged or discarded.
        """
        self.directory = target.with_name(f"{target.name}.progress")
        self._configuration = configuration
        self.record = record

    def save(
        self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, best: Weights | None
    ) -> None:
        """Publish the state after `progress.total` steps and remove all but the last two."""
        content = {"configuration": self._configuration, "step": progress.total}
        with publish(self.directory / f"step-{progress.total}", KIND, content) as staging:
            save_file(weights_of(model), staging / "model.safetensors")
            save_file(_optimizer_state(model, optimizer) | _random_state(), staging / "optimizer.safetensors")
            if best is not None:
                save_file(best, staging / "best.safetensors")
            write_json(staging / "state.json", asdict(progress))
        for old in self._steps()[KEPT:]:
            shutil.rmtree(old)

    def resume(self, model: nn.Module) -> tuple[Progress, Weights | None, "OptimizerState"] | None:
        """Load the latest whole state into the model and the random generators.

        A damaged state is reported as the event `checkpoint_damaged` and the one before it is taken. Progress
        of another configuration is reported as `progress_discarded` and removed.

        Returns:
            Where the training stands, the best weights so far, and what `restore_optimizer` needs; `None`
            where there is nothing to resume.
        """
        for leftover in self.directory.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in self._steps():
            try:
                artifact = Artifact.read(path, KIND, verify=True)
                if artifact.content["configuration"] != self._configuration:
                    self.record.event(
                        "progress_discarded", {"path": path.name, "why": "another configuration"}
                    )
                    shutil.rmtree(path)
                    continue
                state = _read(path)
            except (ArtifactError, SafetensorError, OSError) as error:
                self.record.event("checkpoint_damaged", {"path": path.name, "why": str(error)})
                continue
            progress, weights, best, optimizer = state
            load_weights(model, weights)
            _restore_random(optimizer)
            self.record.event("resumed", {"path": path.name, "step": progress.total})
            return progress, best, optimizer
        return None

    def remove(self) -> None:
        """Remove the progress directory; the training is finished."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _steps(self) -> list[Path]:
        """Return the state directories, latest first."""
        return sorted(self.directory.glob("step-*"), key=lambda path: int(path.name[5:]), reverse=True)


OptimizerState = dict[str, Tensor]


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put saved moments back, in place."""
    for name, parameter in model.named_parameters():
        prefix = f"{name}|"
        saved = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if saved:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    return {
        f"{name}|{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _random_state() -> OptimizerState:
    state = {"random|cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random|cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random(state: OptimizerState) -> None:
    torch.set_rng_state(state["random|cpu"])
    if "random|cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random|cuda"])


def _read(path: Path) -> tuple[Progress, Weights, Weights | None, OptimizerState]:
    best = path / "best.safetensors"
    return (
        Progress(**json.loads((path / "state.json").read_text(encoding="utf-8"))),
        load_file(path / "model.safetensors"),
        load_file(best) if best.exists() else None,
        load_file(path / "optimizer.safetensors"),
    )
