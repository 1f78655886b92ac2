"""The training loop, as functions that take objects.

1. `_prepare`    read the examples, build the towers from them, prepare every query and document once;
2. `_resume`     go on from the last whole state of the same configuration, if there is one;
3. `run_stage`   for each stage, start from the best weights with a fresh optimiser, and (`towers.loop`)
     a. take a step  encode each distinct query and document of a batch once, score them under the one mask,
                     compute the objective, update (`towers.step`);
     b. log          every few steps: loss, gap, spread, gradient norm, learning rate → curve and recorder;
     c. watch        for a collapse; go back to a healthy state where there is one (`towers.recovery`);
     d. probe        every few steps: a fixed batch, by which stages are left and entered (`towers.leaving`);
     e. validate     every so often: rank the corpus, keep the best weights, leave the stage when it stalls;
     f. save         every so often: publish the state;
4. `_finish`     publish the best weights as a `checkpoint` artifact and remove the states.

With one seed, one configuration and one number of threads the weights are the same, bit for bit, on a CPU,
whether or not the training was interrupted.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from features.artifact import Artifact, digest_of, publish, write_json
from features.errors import ConfigError
from towers.checkpoint import TOLD, Checkpoints, load_weights, restore_optimizer
from towers.collate import distinct_rows
from towers.data import read_training_data
from towers.determinism import reproducible
from towers.distributed import Ranks, joined_ranks
from towers.loop import run_stage, stage_batches
from towers.losses import supposes_cosine
from towers.mining import require_cosine
from towers.probe import build_probe
from towers.record import ListRecorder, NoRecorder, Recorder
from towers.schedule import StageConfig, TrainConfig, build_optimizer
from towers.step import Inputs
from towers.training import Held, Training, measure_validation
from towers.two_tower import TowersConfig, build_two_tower
from towers.validation import Validation

__all__ = ["ListRecorder", "NoRecorder", "Recorder", "StageConfig", "TrainConfig", "train"]


def train(
    examples: Path,
    target: Path,
    towers: TowersConfig,
    config: TrainConfig,
    *,
    seed: int,
    record: Recorder,
) -> Artifact:
    """Train two towers on an examples artifact and publish them as a checkpoint artifact.

    Args:
        examples: The `examples` artifact.
        target: The directory to publish; states lie beside it in `<target>.progress` until then.
        towers: What the towers are.
        config: How they learn.
        seed: ≥ 0; decides initial weights, order, negatives and dropout.
        record: Told of every measurement and event.

    Started by torchrun (`towers.launch`), every rank calls this with the same arguments and directories; the
    first one alone writes and records.

    Returns:
        The published artifact, of kind `checkpoint`.

    Raises:
        ConfigError: If the configuration does not fit the data or this machine.
        SchemaError: If the examples do not hold what they should.
        TrainingError: If the loss or gradient stops being finite, the training collapses again and again, or
            a stage waits in vain for a separation.
    """
    started = time.monotonic()
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; it is {seed}")
    source = Artifact.read(examples, "examples")
    settings = {
        "towers": towers.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        "seed": seed,
        "examples": source.digest,
    }
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    with joined_ranks(use_cuda=use_cuda) as ranks, reproducible(config, seed) as device:
        _require_started(config, ranks)
        settings |= {
            "ranks": ranks.size,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        writes = ranks.rank == 0
        record = record if writes else NoRecorder()
        checkpoints = Checkpoints(target, digest_of(settings), record, writes=writes)
        training = _prepare(examples, towers, config, seed, device, checkpoints)
        resumed = _resume(training, ranks)
        if training.held and not resumed:
            measure_validation(training, training.held)
        while training.progress.stage < len(config.stages):
            run_stage(training)
        if writes:
            _finish(training, target, settings, started)
        ranks.wait()
        return Artifact.read(target, "checkpoint")


def _prepare(
    examples: Path,
    towers: TowersConfig,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints,
) -> Training:
    data = read_training_data(examples)
    for number, stage in enumerate(config.stages):
        stage_batches(data, stage, (seed, number))  # a batch larger than the data is refused before any work
        _require_fit(stage, towers)
    model = build_two_tower(towers, data.documents, data.queries)
    held = None
    if config.early_stopping:
        limit, metric = config.early_stopping.max_queries, config.early_stopping.metric
        validation = Validation(examples, data.documents, limit, metric)
        held = Held(config.early_stopping, validation, model.prepare_queries(validation.frame))
    queries = model.prepare_queries(data.queries)
    first, group = distinct_rows(queries)
    data = replace(data, query=group[data.query])
    inputs = Inputs(queries.take(torch.from_numpy(first)), model.prepare_documents(data.documents))
    model.to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    probe = build_probe(data, inputs, config.probe, seed, device)
    record = checkpoints.record
    record.event("prepared", {"examples": len(data), "queries": len(first), "documents": len(data.documents)})
    return Training(config, seed, record, device, data, inputs, held, probe, model, optimizer, checkpoints)


def _require_started(config: TrainConfig, ranks: Ranks) -> None:
    if ranks.size < config.ranks:
        raise ConfigError(
            f"train.ranks is {config.ranks}, but processes that train: {ranks.size}; `twotower train` "
            "and `run` start them, for others set it to 1"
        )


def _require_fit(stage: StageConfig, towers: TowersConfig) -> None:
    """Refuse a stage that supposes cosines of towers that give others.

    Raises:
        ConfigError: If it does.
    """
    if stage.negatives.mined is not None:
        require_cosine(stage.negatives.mined, towers.similarity)
    if supposes_cosine(stage.loss) and towers.similarity != "cosine":
        raise ConfigError(
            f"train.stages, stage {stage.name!r}: false_negative_prior supposes that no score is below -1, "
            f"but towers.similarity is {towers.similarity}; set it to 0, or the similarity to cosine"
        )


def _resume(training: Training, ranks: Ranks) -> bool:
    """Load the last whole state, if any; returns whether there was one."""
    if ranks.rank > 0:
        ranks.wait()  # the first rank clears away what is damaged or of another training
    state = training.checkpoints.resume(training.model)
    if ranks.rank == 0:
        ranks.wait()
    ranks.wait()
    if state is None:
        return False
    training.progress, training.best, training.healthy = state.progress, state.best, state.healthy
    training.supplied = state.negatives
    restore_optimizer(training.model, training.optimizer, state.optimizer)
    return True


def _finish(training: Training, target: Path, settings: dict[str, Any], started: float) -> None:
    """Publish the best weights, or the last ones where nothing was validated."""
    progress = training.progress
    if training.best is not None:
        load_weights(training.model, training.best)
    content: dict[str, Any] = {**settings, "best": progress.best, "steps": progress.total}
    with publish(target, "checkpoint", content) as staging:
        training.model.cpu().eval().save(staging / "two_tower")
        told = {name: value for name, value in asdict(progress).items() if name in TOLD}
        write_json(staging / "training.json", {"settings": settings, **told})
        content["seconds"] = round(time.monotonic() - started, 3)
    training.checkpoints.remove()
