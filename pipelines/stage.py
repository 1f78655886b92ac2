"""What a stage is: work with a key, that can be looked up, done and recorded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from features.artifact import Artifact
from pipelines.config import RunConfig, portable
from pipelines.tracking import StageRun, Tracking
from pipelines.workspace import Workspace, stage_key


@dataclass(frozen=True)
class Outcome:
    """What a stage made or found.

    Attributes:
        path: The artifact's directory, or for a promotion the pointer file.
        digest: Identifies the content.
        summary: One line for people.
        content: What the artifact's manifest says.
    """

    path: Path
    digest: str
    summary: str
    content: Mapping[str, Any]


class Stage(ABC):
    """A unit of work with a key: equal keys are equal work."""

    name: ClassVar[str]

    def __init__(self, config: RunConfig, section: object, inputs: Mapping[str, str]) -> None:
        self.config = config
        self.workspace = Workspace(config.store)
        self.inputs = dict(inputs)
        self.key = stage_key(self.name, portable(section), self.inputs)

    @property
    def target(self) -> Path:
        """Directory of the artifact."""
        return self.workspace.target(self.name, self.key)

    def find(self) -> Outcome | None:
        """Return the finished work, or none."""
        artifact = self.workspace.find(self.name, self.key)
        return None if artifact is None else self.outcome(artifact)

    def outcome(self, artifact: Artifact) -> Outcome:
        """Describe an artifact of this stage."""
        return Outcome(artifact.path, artifact.digest, self.summary(artifact), artifact.content)

    @abstractmethod
    def run(self, recorder: Any) -> Outcome:
        """Do the work."""

    def summary(self, artifact: Artifact) -> str:
        """Say in one line what the artifact holds."""
        return str(artifact.path)

    def record(self, tracking: Tracking, child: StageRun, outcome: Outcome) -> None:
        """Add to the stage's MLflow run what is particular to it."""
        manifest = outcome.path / "manifest.json"
        if manifest.is_file():
            child.artifact(manifest)
