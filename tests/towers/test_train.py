import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from features.artifact import Artifact
from features.errors import ConfigError, TrainingError
from towers.train import ListRecorder, NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig, TwoTower

QUERY = {"text": {"width": 16, "word_buckets": 512, "ngram_buckets": 1, "ngram_max": 0}, "hidden": [16]}
DOCUMENT = {"id": {"width": 16}, "hidden": [16]}  # an id says nothing before it is learned
TOWERS = TowersConfig.model_validate(
    {"dimension": 16, "query": {"kind": "features"} | QUERY, "document": {"kind": "features"} | DOCUMENT}
)
STAGES: list[dict[str, Any]] = [
    {"name": "first", "batch_size": 32, "epochs": 3, "learning_rate": 0.02, "warmup_steps": 5},
    {"name": "second", "batch_size": 64, "steps": 12, "unclicked_per_query": 2}
    | {"learning_rate": 0.01, "loss": {"kind": "hinge", "margin": 0.2}},
]


def configured(**changes: Any) -> TrainConfig:
    early = {"metric": "nDCG@10", "every": 12, "patience": 3}
    return TrainConfig.model_validate(
        {"stages": STAGES, "early_stopping": early, "device": "cpu", "num_threads": 1, "log_every": 4}
        | changes
    )


@pytest.fixture(scope="module")
def recorded(
    coloured_things: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, ListRecorder]:
    record = ListRecorder()
    target = tmp_path_factory.mktemp("train") / "checkpoint"
    return train(coloured_things, target, TOWERS, configured(), seed=3, record=record), record


def weights(artifact: Artifact) -> dict[str, dict[str, torch.Tensor]]:
    root = artifact.path / "two_tower"
    return {str(file.relative_to(root)): load_file(file) for file in sorted(root.rglob("*.safetensors"))}


def test_training_learns_and_says_how_it_went(recorded: tuple[Artifact, ListRecorder]) -> None:
    artifact, record = recorded
    told = json.loads((artifact.path / "training.json").read_text())
    untrained, *later = told["validations"]
    assert untrained["step"] == 0
    assert told["best"]["value"] == max(entry["nDCG@10"] for entry in later)
    assert told["best"]["value"] > max(0.8, untrained["nDCG@10"] + 0.2)
    assert {"R@100", "nDCG@10", "ListAUC"} <= untrained.keys()
    assert [stage["name"] for stage in told["stages"]] == ["first", "second"]
    losses = [point["loss"] for point in told["curve"] if point["stage"] == "first"]
    assert losses[-1] < losses[0] / 2
    second = [point for point in told["curve"] if point["stage"] == "second"]
    assert all(1 <= point["unclicked_negatives"] <= 2 for point in second)
    assert all(0 < point["in_batch_negatives"] < 64 for point in second)
    names = {name for name, _, _ in record.metrics}
    wanted = (
        "loss",
        "gap",
        "query_std",
        "document_std",
        "gradient_norm",
        "learning_rate",
        "examples_per_second",
    )
    assert {f"train/{name}" for name in wanted} | {"validation/nDCG@10"} <= names
    assert [name for name, _ in record.events if name.startswith("stage")] == [
        "stage_started",
        "stage_finished",
    ] * 2


def test_the_result_loads_and_is_the_only_thing_left(recorded: tuple[Artifact, ListRecorder]) -> None:
    artifact, _ = recorded
    assert [path.name for path in artifact.path.parent.iterdir()] == ["checkpoint"]
    assert artifact.kind == "checkpoint"
    assert TwoTower.load(artifact.path / "two_tower").dimension == 16


def test_the_same_seed_gives_the_same_digest_and_another_seed_other_weights(
    recorded: tuple[Artifact, ListRecorder], coloured_things: Path, tmp_path: Path
) -> None:
    again = train(coloured_things, tmp_path / "again", TOWERS, configured(), seed=3, record=NoRecorder())
    other = train(coloured_things, tmp_path / "other", TOWERS, configured(), seed=4, record=NoRecorder())
    assert again.digest == recorded[0].digest
    files = [name for name in again.manifest["files"] if name.endswith(".safetensors")]
    assert files
    assert any(again.manifest["files"][name] != other.manifest["files"][name] for name in files)


def test_the_seed_decides_the_first_weights_too(coloured_things: Path, tmp_path: Path) -> None:
    still = STAGES[0] | {"epochs": None, "steps": 1, "learning_rate": 1e-20}
    config = configured(stages=[still], early_stopping=None)
    one, two = (
        weights(train(coloured_things, tmp_path / str(seed), TOWERS, config, seed=seed, record=NoRecorder()))
        for seed in (0, 1)
    )
    changed = [
        not torch.allclose(tensor, two[file][name], atol=1e-6)
        for file in one
        for name, tensor in one[file].items()
    ]
    assert any(changed)


def test_training_leaves_the_process_as_it_was(coloured_things: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    config = configured(stages=[STAGES[0] | {"epochs": None, "steps": 1}], early_stopping=None, num_threads=1)
    train(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=NoRecorder())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


def test_the_best_weights_are_the_result_and_a_stalled_stage_is_left(
    coloured_things: Path, tmp_path: Path
) -> None:
    """The second stage's rate destroys what the first learned; its weights must not be the result."""
    wild = STAGES[1] | {"enter": None, "steps": 200, "learning_rate": 100.0, "decay": "none"}
    config = configured(
        stages=[STAGES[0], wild], early_stopping={"metric": "nDCG@10", "every": 6, "patience": 2}
    )
    result = train(coloured_things, tmp_path / "x", TOWERS, config, seed=3, record=NoRecorder())
    told = json.loads((result.path / "training.json").read_text())
    assert told["best"]["stage"] == "first"
    assert told["stages"][1] == {"name": "second", "steps": 12, "reason": "stalled"}
    assert told["validations"][-1]["nDCG@10"] < told["best"]["value"] / 2
    only = configured(stages=[STAGES[0]], early_stopping={"metric": "nDCG@10", "every": 6, "patience": 2})
    first = train(coloured_things, tmp_path / "y", TOWERS, only, seed=3, record=NoRecorder())
    for name, tensors in weights(first).items():
        assert all(torch.equal(tensor, weights(result)[name][key]) for key, tensor in tensors.items())


def test_without_validation_the_last_weights_are_the_result(coloured_things: Path, tmp_path: Path) -> None:
    config = configured(early_stopping=None, stages=[STAGES[0]])
    result = train(coloured_things, tmp_path / "x", TOWERS, config, seed=3, record=NoRecorder())
    assert result.content["best"] is None
    assert result.content["steps"] == 36


def test_a_loss_that_is_not_a_number_ends_training_with_the_step_and_stage(
    coloured_things: Path, tmp_path: Path
) -> None:
    """Under a dot product an absurd rate overflows within a few steps."""
    towers = TowersConfig.model_validate({**TOWERS.model_dump(), "similarity": "dot"})
    wild = STAGES[0] | {"learning_rate": 1e30, "warmup_steps": 0}
    config = configured(stages=[wild], early_stopping=None, gradient_clip=None)
    with pytest.raises(
        TrainingError, match=r"stage 'first', step \d+ of 36: the (loss|gradient norm) is (nan|inf)"
    ):
        train(coloured_things, tmp_path / "x", towers, config, seed=0, record=NoRecorder())
    assert not (tmp_path / "x").exists()


def test_a_batch_larger_than_the_data_is_refused_before_any_training(
    coloured_things: Path, tmp_path: Path
) -> None:
    record = ListRecorder()
    config = configured(stages=[STAGES[0], STAGES[1] | {"batch_size": 1000}])
    with pytest.raises(ConfigError, match=r"stage 'second': batch_size is 1000 but there are only 400"):
        train(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=record)
    assert not record.metrics


def test_a_missing_gpu_is_said_not_replaced(coloured_things: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        train(coloured_things, tmp_path / "x", TOWERS, configured(device="cuda"), seed=0, record=NoRecorder())


def test_a_hinge_that_waits_prolongs_the_stage_before_it_or_fails_loudly(
    coloured_things: Path, tmp_path: Path
) -> None:
    short = STAGES[0] | {"epochs": None, "steps": 8}
    probe = {"every": 4}
    waiting = STAGES[1] | {"enter": {"gap": 0.05, "measurements": 2, "extend": 30}}
    config = configured(stages=[short, waiting], early_stopping=None, probe=probe)
    result = train(coloured_things, tmp_path / "x", TOWERS, config, seed=3, record=NoRecorder())
    told = json.loads((result.path / "training.json").read_text())
    assert told["stages"][0]["steps"] > 8
    gaps = [point["gap"] for point in told["probes"] if point["stage"] == "first"]
    assert min(gaps[-2:]) > 0.05 >= min(gaps[-3:])
    impossible = STAGES[1] | {"enter": {"gap": 1.9, "extend": 0.5}}
    config = configured(stages=[short, impossible], early_stopping=None, probe=probe)
    with pytest.raises(
        TrainingError, match=r"stage 'second' waits .* by over 1.9, and stage 'first' has not"
    ):
        train(coloured_things, tmp_path / "y", TOWERS, config, seed=3, record=NoRecorder())


def test_a_stage_is_left_once_its_positives_are_separated(coloured_things: Path, tmp_path: Path) -> None:
    leave = {"kind": "separation", "gap": 0.05, "measurements": 2}
    stage = STAGES[0] | {"epochs": 100, "leave": leave}
    config = configured(stages=[stage], early_stopping=None, probe={"every": 4})
    result = train(coloured_things, tmp_path / "x", TOWERS, config, seed=3, record=NoRecorder())
    (told,) = json.loads((result.path / "training.json").read_text())["stages"]
    assert told["reason"] == "separated"
    assert told["steps"] < 1200
