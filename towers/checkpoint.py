"""Mid-training state on disk: whole or absent, verified on load, and enough to go on bit for bit.

`<target>.progress/step-<n>/` is an artifact with `model.safetensors`, `best.safetensors` (the best weights so
far, where there are any), `healthy.safetensors` (the state to go back to after a collapse),
`negatives.safetensors` (what is mined and queued, where the stage has such sources),
`optimizer.safetensors` (moments by parameter name, and the random state) and `state.json` (stage, step, best
so far, curve). The last two are kept.
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
from towers.leaving import Leaving
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
        probes: One entry per measurement of the probe.
        stages: One entry per finished stage: `name`, `steps`, `reason`.
        leaving: What the rules for leaving remember of this stage.
        suspicious: Steps in a row in which the guard saw all signs of a collapse.
        retries: Collapses of the current stage so far.
        recovering: Whether the way back from the last of them is what runs now.
        collapses: One entry per alarm: `stage`, `step`, `loss`, `gap`, `relative_spread`, ….
    """

    stage: int = 0
    step: int = 0
    total: int = 0
    stale: int = 0
    best: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    leaving: Leaving = field(default_factory=Leaving)
    suspicious: int = 0
    retries: int = 0
    recovering: bool = False
    collapses: list[dict[str, Any]] = field(default_factory=list)


TOLD = ("total", "best", "curve", "validations", "probes", "stages", "collapses")
"""The fields of `Progress` that outlast the training."""

Weights = dict[str, Tensor]
OptimizerState = dict[str, Tensor]


@dataclass(frozen=True)
class Healthy:
    """A state to go back to.

    Attributes:
        step: Optimiser steps over all stages when it was kept.
        weights: Of the model.
        moments: Of the optimiser.
    """

    step: int
    weights: Weights
    moments: OptimizerState


@dataclass(frozen=True)
class State:
    """What a resumed training goes on from; the model's weights are loaded already."""

    progress: Progress
    best: Weights | None
    healthy: Healthy | None
    optimizer: OptimizerState
    negatives: dict[str, Tensor]


def progress_of(target: Path) -> Path:
    """Return the directory beside a training's target that holds what it needs until it is finished."""
    return target.with_name(f"{target.name}.progress")


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

    def __init__(self, target: Path, configuration: str, record: Recorder, *, writes: bool = True) -> None:
        """Prepare.

        Args:
            target: Where the finished artifact will be.
            configuration: Digest of everything that decides the result; other progress is not resumed.
            record: Told of what is resumed, damaged or discarded.
            writes: False for a rank that only reads, since another one writes: nothing is saved or removed.
        """
        self._writes = writes
        self.directory = progress_of(target)
        self._configuration = configuration
        self.record = record

    def save(
        self,
        progress: Progress,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: Weights | None,
        healthy: Healthy | None = None,
        negatives: dict[str, Tensor] | None = None,
    ) -> None:
        """Publish the state after `progress.total` steps and remove all but the last two."""
        if not self._writes:
            return
        content = {"configuration": self._configuration, "step": progress.total}
        with publish(self.directory / f"step-{progress.total}", KIND, content) as staging:
            save_file(weights_of(model), staging / "model.safetensors")
            save_file(optimizer_state(model, optimizer) | _random_state(), staging / "optimizer.safetensors")
            if best is not None:
                save_file(best, staging / "best.safetensors")
            if healthy is not None:
                save_file(_packed(healthy), staging / "healthy.safetensors")
            if negatives:
                save_file(negatives, staging / "negatives.safetensors")
            write_json(staging / "state.json", asdict(progress))
        for old in self._steps()[KEPT:]:
            shutil.rmtree(old)

    def resume(self, model: nn.Module) -> State | None:
        """Load the latest whole state into the model and the random generators.

        A damaged state is reported as the event `checkpoint_damaged` and the one before it is taken. Progress
        of another configuration is reported as `progress_discarded` and removed.

        Returns:
            The state, or `None` where there is nothing to resume.
        """
        for leftover in self.directory.glob(".*") if self._writes else ():
            shutil.rmtree(leftover, ignore_errors=True)
        for path in self._steps():
            try:
                artifact = Artifact.read(path, KIND, verify=True)
                if artifact.content["configuration"] != self._configuration:
                    self.record.event(
                        "progress_discarded", {"path": path.name, "why": "another configuration"}
                    )
                    if self._writes:
                        shutil.rmtree(path)
                    continue
                state, weights = _read(path)
            except (ArtifactError, SafetensorError, OSError) as error:
                self.record.event("checkpoint_damaged", {"path": path.name, "why": str(error)})
                continue
            load_weights(model, weights)
            _restore_random(state.optimizer)
            self.record.event("resumed", {"path": path.name, "step": state.progress.total})
            return state
        return None

    def remove(self) -> None:
        """Remove the progress directory; the training is finished."""
        if self._writes:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _steps(self) -> list[Path]:
        """Return the state directories, latest first."""
        return sorted(self.directory.glob("step-*"), key=lambda path: int(path.name[5:]), reverse=True)


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Put copies of saved moments into the optimiser, in place."""
    for name, parameter in model.named_parameters():
        prefix = f"{name}|"
        saved = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if saved:
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) for key, value in saved.items()
            }


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Return a copy of the moments on the CPU, by parameter name."""
    return {
        f"{name}|{key}": value.detach().to("cpu", copy=True).contiguous()
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


def _packed(healthy: Healthy) -> dict[str, Tensor]:
    """Return a healthy state as one dictionary of tensors."""
    weights = {f"weights|{name}": value for name, value in healthy.weights.items()}
    moments = {f"moments|{name}": value for name, value in healthy.moments.items()}
    return {"step": torch.tensor(healthy.step), **weights, **moments}


def _unpacked(tensors: dict[str, Tensor]) -> Healthy:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("|")
        if name:
            parts[kind][name] = value
    return Healthy(int(tensors["step"]), parts["weights"], parts["moments"])


def _read(path: Path) -> tuple[State, Weights]:
    """Return the state and the model's weights."""
    best, healthy = path / "best.safetensors", path / "healthy.safetensors"
    negatives = path / "negatives.safetensors"
    told = json.loads((path / "state.json").read_text(encoding="utf-8"))
    state = State(
        progress=Progress(**{**told, "leaving": Leaving(**told["leaving"])}),
        best=load_file(best) if best.exists() else None,
        healthy=_unpacked(load_file(healthy)) if healthy.exists() else None,
        optimizer=load_file(path / "optimizer.safetensors"),
        negatives=load_file(negatives) if negatives.exists() else {},
    )
    return state, load_file(path / "model.safetensors")
