"""One configuration for a whole run: it only composes the configurations of the components.

A configuration is a YAML file. Every mistake in it is reported with its key, its line and what is
allowed, all mistakes at once. `--set a.b=c` changes single values. Paths are relative to the working
directory and absolute after loading, so that later stages do not depend on it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from features.config import Config
from features.errors import ConfigError
from features.examples import ExamplesConfig
from features.lake import IngestConfig
from features.qrels import QrelsConfig
from features.readers import SourceConfig
from pipelines.located_yaml import Key, Located, nearest, override, read_located_yaml
from pipelines.study_config import CollapseStudyConfig
from serving.api import ServeConfig
from serving.build import IndexConfig
from serving.signing import SignConfig
from towers.encoders.inputs import FeatureTowerConfig
from towers.evaluate import EvaluateConfig
from towers.train import TrainConfig
from towers.two_tower import TowersConfig

Baseline = Literal["random", "popularity", "ctr", "bm25"]


class PromoteConfig(Config):
    """When a new bundle may take the place of the one that is served."""

    metric: str | None = Field(
        default=None, description="Metric over all queries that decides; none is `evaluate.decision`."
    )
    require_beats: tuple[Baseline, ...] = Field(
        default=("random", "popularity"),
        description="Baselines that the towers must beat on the metric, with the interval of the paired "
        "difference above zero and a paired test that gives p below 0.05.",
    )
    tolerance: float = Field(
        default=0.01,
        ge=0,
        description="Largest mean loss against the champion, on the same queries, that counts as not worse "
        "where chance could explain it; a loss that chance cannot explain is always worse.",
    )
    force: bool = Field(
        default=False, description="Promote all the same; the objections are kept in the reason."
    )
    keep: int | None = Field(
        default=None,
        ge=0,
        description="Newest bundles that stay after a promotion, besides the champion and what a rollback "
        "goes back to; none keeps all.",
    )


class TrackingConfig(Config):
    """Where MLflow keeps runs, metrics and registered models."""

    uri: str | None = Field(
        default=None, description="MLflow tracking URI; none is SQLite and a folder inside the store."
    )
    experiment: str | None = Field(default=None, description="MLflow experiment; none is the run's name.")


class RunConfig(Config):
    """Everything that `twotower run` needs to know."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the run, experiment and registered model.",
    )
    store: Path = Field(description="Folder for all artifacts of this configuration.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of every random choice in training.")
    source: SourceConfig = Field(description="Which logs and catalogue to read, and how.")
    ingest: IngestConfig = Field(default_factory=IngestConfig, description="What is accepted into the lake.")
    examples: ExamplesConfig = Field(description="The time cut and what counts as positive and unclicked.")
    towers: TowersConfig = Field(default_factory=TowersConfig, description="The two encoders.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Stages, losses, optimiser.")
    evaluate: EvaluateConfig = Field(
        default_factory=EvaluateConfig, description="Metrics, slices, baselines, intervals."
    )
    qrels: QrelsConfig | None = Field(
        default=None, description="Judged queries to evaluate on in place of held-out clicks; none is off."
    )
    index: IndexConfig = Field(default_factory=IndexConfig, description="The nearest-neighbour index.")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="The HTTP API.")
    sign: SignConfig | None = Field(
        default=None, description="How new bundles are signed; none leaves them unsigned."
    )
    promote: PromoteConfig = Field(default_factory=PromoteConfig, description="When to swap the champion.")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow.")
    study: CollapseStudyConfig | None = Field(
        default=None, description="What `twotower study collapse` compares; none is off."
    )

    @model_validator(mode="after")
    def _query_tower_reads_the_query(self) -> "RunConfig":
        tower = self.towers.query
        of_user = isinstance(tower, FeatureTowerConfig) and (tower.history or tower.id or tower.categories)
        if self.examples.query == "history" and not of_user:
            raise ValueError(
                "examples.query is history but towers.query reads none, so all queries would be equal; "
                "add towers.query.history (configs/ranklens.yaml has one) or set examples.query to text"
            )
        return self


class ServerConfig(Config):
    """What `twotower serve` needs to know, where it does not know how the store was made."""

    serve: ServeConfig = Field(description="The HTTP API.")


Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> RunConfig:
    """Read, override and validate a configuration.

    Args:
        path: YAML file.
        overrides: Assignments such as `train.stages.0.batch_size=64`, applied in order.
        base: Folder that relative paths in the configuration are relative to; none is the working directory.

    Raises:
        ConfigError: If anything is wrong; the message has one line for each mistake.
    """
    located = read_located_yaml(path)
    if not isinstance(located.data, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys to values at the top, as in configs/shop.yaml; "
            "give the path of a YAML configuration"
        )
    for assignment in overrides:
        override(located, assignment, _default_list)
    return _checked(RunConfig, located, base)


def load_serve_config(path: Path) -> ServeConfig:
    """Return the settings of `serve`, from a configuration or from a file that has nothing else.

    Raises:
        ConfigError: As `load_config` does.
    """
    located = read_located_yaml(path)
    if isinstance(located.data, dict) and located.data.keys() == {"serve"}:
        return _checked(ServerConfig, located).serve
    return load_config(path).serve


def _checked(model: type[Model], located: Located, base: Path | None = None) -> Model:
    try:
        config = model.model_validate(located.data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, located, model))) from None
    return cast(Model, absolute_paths(config, base or Path.cwd()))


def _default_list(key: Key) -> list[Any] | None:
    """Return the default of a list of the configuration, as YAML would have it; None of anything else."""
    model: Any = RunConfig
    for part in key[:-1]:
        field = model.model_fields.get(part)
        model = None if field is None else field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    field = model.model_fields.get(key[-1])
    default = None if field is None else field.get_default(call_default_factory=True, validated_data={})
    if not isinstance(default, list | tuple):
        return None
    return [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in default]


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML, in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def portable(value: Any) -> Any:
    """Return configuration as plain JSON values in which a file is its name, wherever it lies."""
    if isinstance(value, BaseModel):
        return {name: portable(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, os.PathLike):
        return Path(value).name
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(portable(item) for item in value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def absolute_paths(value: Any, base: Path) -> Any:
    """Return a configuration in which each `Path` is absolute."""
    if isinstance(value, BaseModel):
        changes = {name: absolute_paths(getattr(value, name), base) for name in type(value).model_fields}
        return value.model_copy(update=changes)
    if isinstance(value, Path):
        return (base / value.expanduser()).resolve()
    if isinstance(value, list | tuple):
        return type(value)(absolute_paths(item, base) for item in value)
    if isinstance(value, dict):
        return {key: absolute_paths(item, base) for key, item in value.items()}
    return value


def explain(error: ValidationError, located: Located, model: type[BaseModel]) -> list[str]:
    """Return one line for each mistake: where it is, what it is, what is allowed."""
    lines = []
    mistakes = error.errors(include_url=False)
    for item in mistakes:
        if item["type"] == "too_short" and any(_is_inside(other["loc"], item["loc"]) for other in mistakes):
            continue  # pydantic counts the elements that are wrong as missing
        key = _written_key(item["loc"], located.data)
        name = ".".join(str(part) for part in key) or "the configuration"
        if item["type"] == "extra_forbidden":
            message = f"{name}: unknown key; {nearest(str(key[-1]), _fields(model, item['loc'][:-1]))}"
        elif item["type"] == "missing":
            name = ".".join(str(part) for part in (*key, item["loc"][-1]))
            message = f"{name}: required, but not given"
        else:
            text = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            got = f" (got {shown})" if len(shown) <= 60 and not isinstance(item["input"], dict) else ""
            message = f"{name}: {text[:1].lower()}{text[1:]}{got}"
        lines.append(f"{located.place(key)}: {message}")
    return list(dict.fromkeys(lines))


def _is_inside(loc: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _written_key(loc: Sequence[str | int], data: Any) -> Key:
    """Drop from a validation location what is no part of the document, such as a union's tag."""
    key: Key = ()
    for part in loc:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            key = (*key, part)
            data = data[part]
    return key


def _fields(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the field names allowed at a validation location."""
    candidates = [model]
    for part in loc:
        below = [
            found
            for candidate in candidates
            if part in candidate.model_fields
            for found in _models(candidate.model_fields[str(part)].annotation)
        ]
        tagged = [item for item in candidates if _is_tagged(item, part)]
        candidates = below or tagged or candidates
    return list(dict.fromkeys(name for item in candidates for name in item.model_fields))


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _is_tagged(model: type[BaseModel], tag: str | int) -> bool:
    return tag == model.__name__ or any(
        tag in get_args(field.annotation) for field in model.model_fields.values()
    )
