"""Judged queries as evaluation reads them: one Parquet file in the store for each source of judgements."""

import os
import uuid
from pathlib import Path

from features.qrels import QrelsConfig, read_qrels, write_qrels_parquet
from pipelines.config import RunConfig, portable
from pipelines.workspace import Workspace, stage_key


def qrels_config(config: RunConfig, path: Path | None) -> QrelsConfig | None:
    """Return which judgements to use: `path` in place of the configuration's own.

    The configuration's other keys stay where both are in the same format, and say nothing about another one.
    """
    if path is None:
        return config.qrels
    named = QrelsConfig(path=path.resolve())
    if config.qrels is None or not config.qrels.same_format(named):
        return named
    return config.qrels.model_copy(update={"path": named.path})


def qrels_key(workspace: Workspace, config: QrelsConfig) -> str:
    """Return a key that is equal for equal judgements, read in the same way.

    Raises:
        SchemaError: If a file does not exist.
    """
    digests = workspace.digests(config.files())
    inputs = {f"{number}": digest for number, digest in enumerate(digests.values())}
    return stage_key("qrels", portable(config), inputs)


def prepared_qrels(workspace: Workspace, config: QrelsConfig) -> Path:
    """Return the Parquet file of some judgements, after reading and writing them where it is not there.

    Raises:
        SchemaError: If the judgements cannot be read.
    """
    source = config.path.name.partition(".")[0]  # so that an error names what the user knows
    path = workspace.store / "qrels" / f"{source}-{qrels_key(workspace, config)}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            write_qrels_parquet(read_qrels(config), staging)
            with staging.open("rb") as file:
                os.fsync(file.fileno())
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    return path
