"""The six stages: what each reads, what its key is, which function does the work, what is recorded of it.

No Prefect here: a stage can be looked up, run and recorded by anything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from features.artifact import Artifact
from features.errors import ArtifactError
from pipelines.comparison import TOWERS, read_evaluation
from pipelines.config import RunConfig
from pipelines.judged import prepared_qrels, qrels_key
from pipelines.local_models import model_digests
from pipelines.output import counted
from pipelines.promote import Decision, promote
from pipelines.stage import Outcome, Stage
from pipelines.tracking import StageRun, Tracking
from pipelines.workspace import StageResult, Workspace
from serving.curve import JSON_NAME, PLOT_NAME
from serving.signing import read_private_key
from serving.store import Store

_NOUNS = {  # of what examples count; `1 train` has no plural
    "known_positives": ("known positive", "known positives"),
    "train_queries": ("train query", "train queries"),
}


class Ingest(Stage):
    """Log files and catalogue → lake."""

    name = "ingest"

    def __init__(self, config: RunConfig) -> None:
        digests = Workspace(config.store).digests(config.source.files())
        inputs = {
            f"{number}.{Path(file).name}": digest for number, (file, digest) in enumerate(digests.items())
        }
        super().__init__(config, {"source": config.source, "ingest": without_engine(config.ingest)}, inputs)

    def run(self, recorder: Any) -> Outcome:
        """Read, validate, quarantine, write."""
        from features.lake import ingest

        return self.outcome(ingest(self.config.source, self.target, self.config.ingest))

    def summary(self, artifact: Artifact) -> str:
        """Count what was accepted and what was not."""
        return "; ".join(_counts(noun, artifact.content[f"{noun}s"]) for noun in ("impression", "document"))


class Examples(Stage):
    """Lake → examples."""

    name = "examples"

    def __init__(self, config: RunConfig, lake: StageResult) -> None:
        super().__init__(config, without_engine(config.examples), {"lake": lake.digest})
        self._lake = Path(lake.path)

    def run(self, recorder: Any) -> Outcome:
        """Cut in time, denoise, count."""
        from features.examples import build_examples

        return self.outcome(build_examples(self._lake, self.target, self.config.examples))

    def summary(self, artifact: Artifact) -> str:
        """Count examples and queries."""
        counts = artifact.content.get("counts", {})
        return ", ".join(
            counted(value, *_NOUNS.get(name, (name, name)))
            for name, value in counts.items()
            if _is_count(value)
        )


class Train(Stage):
    """Examples → checkpoint."""

    name = "train"

    def __init__(self, config: RunConfig, data: StageResult) -> None:
        section = {"towers": config.towers, "train": config.train, "seed": config.seed}
        models = model_digests(Workspace(config.store), config.towers)
        super().__init__(config, section, {"examples": data.digest, **models})
        self._examples = Path(data.path)

    def run(self, recorder: Any) -> Outcome:
        """Train, or go on where an interrupted training of the same key stopped."""
        from towers.launch import train_on_ranks

        config = self.config
        artifact = train_on_ranks(
            self._examples, self.target, config.towers, config.train, seed=config.seed, record=recorder
        )
        return self.outcome(artifact)

    def summary(self, artifact: Artifact) -> str:
        """Say how long it went on and what was best."""
        best = artifact.content["best"]
        steps = counted(artifact.content["steps"], "step")
        if best is None:
            return f"{steps}, the last weights"
        return f"{steps}, best validation {best['metric']} {best['value']:.4f} at step {best['step']:,}"


class Evaluate(Stage):
    """Examples and checkpoint → evaluation."""

    name = "evaluate"

    def __init__(self, config: RunConfig, data: StageResult, checkpoint: StageResult) -> None:
        inputs = {"examples": data.digest, "checkpoint": checkpoint.digest}
        if config.qrels is not None:
            inputs["qrels"] = qrels_key(Workspace(config.store), config.qrels)
        super().__init__(config, config.evaluate, inputs)
        self._examples, self._checkpoint = Path(data.path), Path(checkpoint.path)

    def run(self, recorder: Any) -> Outcome:
        """Rank the whole corpus exactly for every test query, baselines beside."""
        from towers.evaluate import evaluate

        config = self.config
        qrels = None if config.qrels is None else prepared_qrels(self.workspace, config.qrels)
        artifact = evaluate(self._examples, self._checkpoint, self.target, config.evaluate, qrels=qrels)
        return self.outcome(artifact)

    def summary(self, artifact: Artifact) -> str:
        """Give the towers' metrics over all queries."""
        rows = [
            row
            for row in read_evaluation(artifact.path).rows
            if (row["system"], row["slice"]) == (TOWERS, "all")
        ]
        return "towers " + ", ".join(f"{row['metric']} {row['value']:.4f}" for row in rows)

    def record(self, tracking: Tracking, child: StageRun, outcome: Outcome) -> None:
        """Record every metric, and the towers' on the parent run too."""
        super().record(tracking, child, outcome)
        rows = read_evaluation(outcome.path).rows
        child.evaluation(rows)
        child.artifact(outcome.path / "evaluation.json")
        tracking.parent.evaluation([row for row in rows if row["slice"] == "all"])


class Export(Stage):
    """Examples, checkpoint and evaluation → bundle."""

    name = "export"

    def __init__(
        self, config: RunConfig, data: StageResult, checkpoint: StageResult, evaluation: StageResult
    ) -> None:
        self._paths = [Path(item.path) for item in (data, checkpoint, evaluation)]
        digests = {"examples": data.digest, "checkpoint": checkpoint.digest, "evaluation": evaluation.digest}
        super().__init__(config, config.index, digests)

    def find(self) -> Outcome | None:
        """Return the bundle that an earlier export of the same key recorded, if it is there still.

        Where bundles are to be signed, one that is not was made by somebody else or is older than the key: it
        is exported again, since a signature vouches for what this run made itself.
        """
        record = self.workspace.read_record("exports", self.key)
        if record is None:
            return None
        sign = self.config.sign
        trusted = () if sign is None else (read_private_key(sign.key).public_key(),)
        try:
            artifact = Store(self.config.store, trusted).bundle(str(record["bundle"]))
        except ArtifactError:
            return None
        made_from = {name: artifact.content[name]["digest"] for name in ("examples", "checkpoint")}
        return self.outcome(artifact) if made_from.items() <= self.inputs.items() else None

    def run(self, recorder: Any) -> Outcome:
        """Encode the corpus, build the index, publish the bundle."""
        from serving.export import export

        examples, checkpoint, evaluation = self._paths
        artifact = export(
            examples,
            checkpoint,
            evaluation,
            self.workspace.bundles,
            self.config.index,
            sign=self.config.sign,
        )
        record = {
            "bundle": artifact.path.name,
            "examples": str(examples),
            "checkpoint": str(checkpoint),
            "evaluation": str(evaluation),
        }
        self.workspace.write_record("exports", self.key, record)
        return self.outcome(artifact)

    def summary(self, artifact: Artifact) -> str:
        """Name the bundle, its index, and the ANN recall measured."""
        index = artifact.content["index"]
        recall = index["ann_recall"]
        missed = recall["target_met_when_tuned"] is False
        documents = counted(artifact.content["documents"], "document")
        return (
            f"bundle {artifact.path.name}: {documents}, {index['factory']}, "
            f"ANN recall@{recall['k']} {recall['value']:.4f}"
            + (f"; NO setting reaches index.target_recall {recall['target']:g}" if missed else "")
        )

    def record(self, tracking: Tracking, child: StageRun, outcome: Outcome) -> None:
        """Upload and register the bundle, unless it is registered already."""
        child.metric("ann_recall", outcome.content["index"]["ann_recall"]["value"], 0)
        for name in (JSON_NAME, PLOT_NAME):
            if (outcome.path / "index" / name).is_file():
                child.artifact(outcome.path / "index" / name)
        version = tracking.register(child, outcome.path, outcome.path.name)
        child.tags({"bundle": outcome.path.name, "model_version": version})


class Promote(Stage):
    """Bundle → champion, or a refusal with its reason."""

    name = "promote"

    def __init__(self, config: RunConfig, bundle: StageResult, evaluation: StageResult) -> None:
        self._bundle, self._evaluation = Path(bundle.path).name, Path(evaluation.path)
        champion = Store(config.store).champion()
        self._champion = champion.bundle_id if champion else ""
        inputs = {"bundle": bundle.digest, "evaluation": evaluation.digest, "champion": self._champion}
        self._metric = config.promote.metric or config.evaluate.decision
        super().__init__(config, {"promote": config.promote, "metric": self._metric}, inputs)

    def find(self) -> Outcome | None:
        """Return what was decided before about the same challenger, champion and rule."""
        if self._champion == self._bundle:
            return self._decided(self._promote())
        record = self.workspace.read_record("promotions", self.key)
        if record is None or record["promoted"]:
            return None
        return self._decided(Decision(**record))

    def run(self, recorder: Any) -> Outcome:
        """Decide, and swap the champion if the answer is yes."""
        decision = self._promote()
        self.workspace.write_record("promotions", self.key, decision.as_json())
        return self._decided(decision)

    def record(self, tracking: Tracking, child: StageRun, outcome: Outcome) -> None:
        """Record the decision, and point MLflow's alias where the store's pointer points."""
        child.tags({f"promotion.{key}": value for key, value in outcome.content.items()})
        if outcome.content["promoted"]:
            tracking.set_champion(self._bundle)

    def _promote(self) -> Decision:
        return promote(self.config.store, self._bundle, self._evaluation, self._metric, self.config.promote)

    def _decided(self, decision: Decision) -> Outcome:
        verb = "champion" if decision.promoted else "NOT promoted"
        summary = f"{decision.bundle} {verb}: {decision.reason}"
        return Outcome(Store(self.config.store).pointer, self.key, summary, decision.as_json())


def without_engine(section: BaseModel) -> dict[str, Any]:
    """Return a configuration without the engine, which changes no result and so no key."""
    return {name: getattr(section, name) for name in type(section).model_fields if name != "engine"}


def _counts(noun: str, table: Mapping[str, Any]) -> str:
    refused = sum(table["quarantined"].values())
    parts = [counted(table["accepted"], noun)]
    parts += [f"{table['duplicates']:,} duplicate"] if table["duplicates"] else []
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in table["quarantined"].items())
    parts += [f"{refused:,} in quarantine ({reasons})"] if refused else []
    return ", ".join(parts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
