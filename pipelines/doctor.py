"""What this machine has and what is missing, each finding in one line."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

from packaging.requirements import Requirement

from features.errors import TwotowerError
from pipelines.environment import usable_cores
from pipelines.located_yaml import read_located_yaml
from pipelines.output import OUTPUT

_OPTIONAL = {
    "sentence_transformers": "sbert: loading text towers with SentenceTransformer",
    "pyspark": "spark: log preparation past one machine",
    "pymilvus": "milvus: an index past one machine",
}


class Finding(TypedDict):
    """`ok`, `note` (worth knowing) or `missing` (something will fail)."""

    name: str
    state: Literal["ok", "note", "missing"]
    detail: str


def examine(config: Path | None) -> list[Finding]:
    """Look at the machine, and at a configuration's data and servers if one is given; print as it goes."""
    if config is not None:
        read_located_yaml(config)  # a wrong path is told before anything else
    parts = [_machine(), _packages(), _accelerators(), _extras(), _prefect()]
    if config is not None:
        parts.append(_configured(config))
    findings = []
    for part in parts:
        for finding in part:
            findings.append(finding)
            OUTPUT.console.out(
                f"{finding['state']:<8}{finding['name']:<22}{finding['detail']}", highlight=False
            )
    return findings


def _machine() -> Iterator[Finding]:
    yield _ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    yield _ok("cores", f"{usable_cores()} usable, OMP_NUM_THREADS={threads}")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        yield _note("OMP_WAIT_POLICY", "is not PASSIVE; training and search are slow where cores are shared")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield (_ok if free > 5 else _note)("disk", f"{free:.0f} GiB free in the working directory")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what twotower declares, versions included."""
    try:
        declared = importlib.metadata.requires("twotower") or []
    except importlib.metadata.PackageNotFoundError:
        yield _note("twotower", "runs from its folder and is not installed; versions cannot be checked")
        return
    yield _ok("twotower", importlib.metadata.version("twotower"))
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield _missing(requirement.name, f"is not installed; needed: {requirement}")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield _ok(requirement.name, version)
        else:
            yield _missing(requirement.name, f"{version} is installed; needed: {requirement}")


def _accelerators() -> Iterator[Finding]:
    if importlib.util.find_spec("faiss") is None:
        yield _missing("faiss", "is not installed; install the extra `cpu`, or `gpu` with CUDA 12")
    else:
        from serving.devices import describe_faiss

        yield _ok("faiss", ", ".join(f"{key} {value}" for key, value in describe_faiss().items()))
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield _ok("gpu", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        yield _note("gpu", f"torch {torch.__version__} sees none; everything runs on the CPU")


def _extras() -> Iterator[Finding]:
    for module, use in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield _note(module, f"not installed; only for the extra {use}")
        else:
            yield _ok(module, importlib.metadata.version(module.replace("_", "-")))


def _prefect() -> Iterator[Finding]:
    from prefect.settings import get_current_settings

    from pipelines.scheduling import server_url

    settings = get_current_settings()
    if settings.api.url is None:
        yield _ok("prefect server", f"none configured: each run starts its own (state in {settings.home})")
        return
    try:
        yield _ok("prefect server", f"answers at {server_url()}")
    except TwotowerError as error:
        yield _missing("prefect server", str(error))


def _configured(path: Path) -> Iterator[Finding]:
    from pipelines.config import load_config
    from pipelines.tracking import Tracking

    config = load_config(path)
    yield _ok("configuration", f"{path} is valid")
    for file in config.source.files():
        if file.is_file():
            yield _ok("data", f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
        else:
            yield _missing("data", f"{file} does not exist; see `source` in {path}")
    nearest = next(folder for folder in (config.store, *config.store.parents) if folder.exists())
    if os.access(nearest, os.W_OK):
        yield _ok("store", str(config.store))
    else:
        yield _missing("store", f"{config.store} cannot be written")
    if config.tracking.uri is None:
        yield _ok("mlflow", "SQLite in the store")
        return
    try:
        tracking = Tracking(config)
        yield _ok("mlflow", f"{tracking.uri}, experiment {tracking.experiment_id}")
    except TwotowerError as error:
        yield _missing("mlflow", str(error))


def _ok(name: str, detail: Any) -> Finding:
    return {"name": name, "state": "ok", "detail": str(detail)}


def _note(name: str, detail: str) -> Finding:
    return {"name": name, "state": "note", "detail": detail}


def _missing(name: str, detail: str) -> Finding:
    return {"name": name, "state": "missing", "detail": detail}
