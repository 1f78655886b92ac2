"""MLflow: one parent run for a pipeline run, a child for each stage, models in the registry.

The client is used directly, not the fluent interface, so that no hidden "active run" exists and stages
can be recorded from anywhere. Nothing is pickled: the bundle folder itself is the logged model.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from features.errors import TwotowerError
from pipelines.config import RunConfig, dump_config

_BATCH = 500  # metrics a request; MLflow refuses more than 1000
_PARAMS = 100  # MLflow refuses more in one request
_FLUSH_SECONDS = 5.0
_CHAMPION = "champion"


class TrackingError(TwotowerError):
    """MLflow cannot be used."""


def metric_name(*parts: str) -> str:
    """Join parts into a metric name that MLflow accepts: `towers/all/nDCG_at_10`."""
    joined = "/".join(parts).replace("@", "_at_")
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", joined)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested configuration as dotted names to text, lists by index."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


class StageRun:
    """The child run of one stage. It is a `towers.train.Recorder`: curves arrive in batches."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._pending: list[Any] = []
        self._events = 0
        self._flushed = time.monotonic()
        self.run_id = run_id

    def metric(self, name: str, value: float, step: int) -> None:
        """Record one point of a curve; it is sent with others, at the latest when the stage ends."""
        from mlflow.entities import Metric

        self._pending.append(Metric(metric_name(name), float(value), int(time.time() * 1000), step))
        if len(self._pending) >= _BATCH or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Record something that happened, such as a new stage or a recovery, as a numbered tag."""
        self._events += 1
        text = ", ".join(f"{key}={value}" for key, value in details.items())
        self._client.set_tag(self.run_id, f"event.{self._events:03d}.{metric_name(name)}", text[:5000] or "-")

    def tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, such as digests."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, str(value)[:5000])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a directory with everything in it."""
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        upload(self.run_id, str(path), folder)

    def evaluation(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record every value of an evaluation with its interval and count of queries."""
        for row in rows:
            name = metric_name(str(row["system"]), str(row["slice"]), str(row["metric"]))
            for suffix, field in (("", "value"), (".low", "low"), (".high", "high"), (".n", "n")):
                if row.get(field) is not None:
                    self.metric(name + suffix, float(row[field]), 0)
        self.flush()

    def flush(self) -> None:
        """Send the points that wait."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        for start in range(0, len(pending), _BATCH):
            self._client.log_batch(self.run_id, metrics=pending[start : start + _BATCH])


class Tracking:
    """One pipeline run in MLflow."""

    def __init__(self, config: RunConfig) -> None:
        """Connect, and find or create the experiment.

        Raises:
            TrackingError: If MLflow cannot be reached or its database cannot be used.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):  # they tell of every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        self.name = config.name
        self.uri = tracking_uri(config)
        local = config.tracking.uri is None
        config.store.mkdir(parents=True, exist_ok=True)
        try:
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            name = config.tracking.experiment or config.name
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                folder = (config.store / "mlartifacts").as_uri() if local else None
                self.experiment_id = self.client.create_experiment(name, artifact_location=folder)
            else:
                self.experiment_id = experiment.experiment_id
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise TrackingError(
                f"MLflow at {self.uri} cannot be used: {reason}; check `tracking.uri`"
            ) from None
        self.run_id = ""

    @contextmanager
    def run(self, config: RunConfig, tags: Mapping[str, str]) -> Iterator[str]:
        """Open the parent run with the resolved configuration; yields its id and closes it."""
        self.run_id = self._create(config.name, tags)
        from mlflow.entities import Param

        flat = flatten(config.model_dump(mode="json"))
        params = [Param(metric_name(key), value[:6000]) for key, value in flat.items()]
        for start in range(0, len(params), _PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + _PARAMS])
        self.client.log_text(self.run_id, dump_config(config), "config.yaml")
        with self._closing(self.run_id):
            yield self.run_id

    @contextmanager
    def stage(self, name: str) -> Iterator[StageRun]:
        """Open the child run of a stage; it ends FINISHED, or FAILED if the block raises."""
        run = StageRun(self.client, self._create(name, {"mlflow.parentRunId": self.run_id, "stage": name}))
        with self._closing(run.run_id):
            try:
                yield run
            finally:
                run.flush()

    @property
    def parent(self) -> StageRun:
        """The parent run, to record what concerns the whole."""
        return StageRun(self.client, self.run_id)

    def register(self, run: StageRun, bundle: Path, bundle_id: str) -> str:
        """Log a bundle folder and make it a version of the registered model.

        Returns:
            The version's number; that of the existing version if the bundle is registered already.
        """
        known = self.version_of(bundle_id)
        if known is not None:
            return known
        run.artifact(bundle, "bundle")
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        source = f"{self.client.get_run(run.run_id).info.artifact_uri}/bundle"
        version = self.client.create_model_version(
            self.name, source, run.run_id, tags={"bundle_id": bundle_id}
        )
        return str(version.version)

    def version_of(self, bundle_id: str) -> str | None:
        """Return the registered version that holds a bundle, or none."""
        for version in self.client.search_model_versions(f"name = '{self.name}'"):
            if version.tags.get("bundle_id") == bundle_id:
                return str(version.version)
        return None

    def set_champion(self, bundle_id: str) -> None:
        """Point the alias `champion` at the version that holds a bundle, if it is registered."""
        version = self.version_of(bundle_id)
        if version is not None:
            self.client.set_registered_model_alias(self.name, _CHAMPION, version)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @contextmanager
    def _closing(self, run_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.client.set_terminated(run_id, status)
            raise
        self.client.set_terminated(run_id, "FINISHED")


def tracking_uri(config: RunConfig) -> str:
    """Return the MLflow URI: the configured one, or a SQLite file in the store."""
    return config.tracking.uri or f"sqlite:///{config.store / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """Return a URI without the user and password that it may hold, for records that others read."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri
