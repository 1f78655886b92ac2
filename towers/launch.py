"""A training on several ranks, started from one process.

1. `train_on_ranks`  writes what is to be done beside the target, starts torchrun on this module, passes on
                     what the first rank records, and raises here what a rank raised;
2. `main`            what each rank does: `towers.train.train`, telling in JSON lines on stdout.

Several machines: torchrun reads its options from the environment too (`PET_NNODES`, `PET_NODE_RANK`,
`PET_MASTER_ADDR`, `PET_MASTER_PORT`). So the first machine runs the usual command, with node rank 0, and
waits for the others; these run `torchrun --nproc-per-node <ranks> -m towers.launch <job>` with the same
variables and a node rank of their own. The job is `<target>.progress/job.json`; all must see that folder.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from features.artifact import Artifact, write_json
from features.errors import (
    ArtifactError,
    BundleError,
    ConfigError,
    LeakageError,
    SchemaError,
    TrainingError,
    TwotowerError,
)
from towers.checkpoint import progress_of
from towers.record import Recorder
from towers.schedule import TrainConfig
from towers.train import train
from towers.two_tower import TowersConfig

_KINDS: dict[str, type[TwotowerError]] = {
    kind.__name__: kind
    for kind in (ArtifactError, BundleError, ConfigError, LeakageError, SchemaError, TrainingError)
}


def train_on_ranks(
    examples: Path,
    target: Path,
    towers: TowersConfig,
    config: TrainConfig,
    *,
    seed: int,
    record: Recorder,
) -> Artifact:
    """Train as `towers.train.train` does, on `config.ranks` processes where these are more than one.

    Ends the ranks when it ends, however that comes about; they also end when this process is killed.

    Raises:
        TwotowerError: What a rank raised. A `TrainingError` where a rank ended by a defect or was killed;
            it names the file that has the traceback.
    """
    if config.ranks == 1:
        return train(examples, target, towers, config, seed=seed, record=record)
    folder = progress_of(target)
    folder.mkdir(parents=True, exist_ok=True)
    job = {"examples": str(examples.absolute()), "target": str(target.absolute()), "seed": seed}
    job |= {"towers": towers.model_dump(mode="json"), "train": config.model_dump(mode="json")}
    write_json(folder / "job.json", job)
    log = folder / "ranks.log"
    with log.open("w", encoding="utf-8") as messages, _torchrun(folder, config.ranks, messages) as process:
        errors = _listen(process, record, messages)
        code = process.wait()
    if code != 0:
        raise _failure(errors, code, log)
    return Artifact.read(target, "checkpoint")


@contextmanager
def _torchrun(folder: Path, ranks: int, messages: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """Start torchrun; at the end it and its ranks are stopped, which is nothing where they have ended."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks))}
    if "PET_NNODES" not in os.environ:  # one machine: nothing beyond loopback, whatever its name resolves to
        command.append("--local-addr=127.0.0.1")
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    command += ["-m", "towers.launch", str(folder / "job.json"), "--end-with-stdin"]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _listen(process: "subprocess.Popen[str]", record: Recorder, messages: IO[str]) -> list[tuple[str, str]]:
    """Pass on what the ranks tell until they end; returns the kind and message of each error.

    What is no line of ours, such as a library's print, goes to the messages.
    """
    errors: list[tuple[str, str]] = []
    for line in process.stdout or ():
        match _parsed(line):
            case {"metric": [name, value, step]}:
                record.metric(name, value, step)
            case {"event": [name, details]}:
                record.event(name, details)
            case {"error": [kind, message]}:
                errors.append((kind, message))
            case _:
                messages.write(line)
    return errors


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _failure(errors: Sequence[tuple[str, str]], code: int, log: Path) -> TwotowerError:
    """Return what the ranks failed with: an error that a user can act on before any that follows from it."""
    for kind, message in errors:
        if kind in _KINDS:
            return _KINDS[kind](message)
    told = ": ".join(errors[0]) if errors else f"no word of why, exit code {code}"
    return TrainingError(f"a rank of the training ended with {told}; {log} says where")


class _LineRecorder:
    """Tells everything in JSON lines on stdout."""

    def metric(self, name: str, value: float, step: int) -> None:
        """Tell a measurement."""
        _tell({"metric": [name, value, step]})

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Tell what happened."""
        _tell({"event": [name, details]})


def _tell(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")  # one write, so that lines of several ranks do not mix
    sys.stdout.flush()


def _end_with_stdin() -> None:
    """End this process, whatever it does, when the one that holds the other end of stdin is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank; returns the exit code."""
    parser = argparse.ArgumentParser(prog="towers.launch", description="One rank of a training.")
    parser.add_argument("job", type=Path, help="The job that `twotower train` wrote beside its target.")
    parser.add_argument("--end-with-stdin", action="store_true", help="End when stdin is closed.")
    options = parser.parse_args(arguments)
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        job = json.loads(options.job.read_text(encoding="utf-8"))
        train(
            Path(job["examples"]),
            Path(job["target"]),
            TowersConfig.model_validate(job["towers"]),
            TrainConfig.model_validate(job["train"]),
            seed=job["seed"],
            record=_LineRecorder(),
        )
    except Exception as error:
        kind = next((kind for kind in type(error).__mro__ if kind.__name__ in _KINDS), type(error))
        message = str(error).strip() or "no message"
        if not isinstance(error, TwotowerError):
            traceback.print_exc()
            message = message.splitlines()[0]
        _tell({"error": [kind.__name__, message]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
