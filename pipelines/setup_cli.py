"""The commands around a run: logs to try it on, the machine, the configuration, a study."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from features.errors import ArtifactError, ConfigError
from pipelines.located_yaml import read_located_yaml
from pipelines.options import ConfigPath, Debug, Json, Set
from pipelines.output import OUTPUT, reported

app = typer.Typer()

study = typer.Typer(help="Repeat a finding of this project on your data.", no_args_is_help=True)
app.add_typer(study, name="study")


@app.command()
@reported
def simulate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.", show_default=False)],
    sessions: Annotated[int | None, typer.Option("--sessions", help="Number of search sessions.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal shops.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the click log, catalogue and true relevance of a simulated shop."""
    from pipelines.commands import simulate_shop

    OUTPUT.finish(simulate_shop(directory, sessions, seed))


@app.command()
@reported
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="Check this configuration's data and servers too."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what this machine has: GPU, faiss build, versions, servers, data; and what is missing."""
    from pipelines.doctor import examine

    findings = examine(config)
    OUTPUT.finish({"findings": findings})
    missing = [finding for finding in findings if finding["state"] == "missing"]
    if missing:
        raise ArtifactError(
            f"{len(missing)} needed things are missing: {', '.join(f['name'] for f in missing)}"
        )


@study.command("collapse")
@reported
def study_collapse(config: ConfigPath, set_: Set = None, json: Json = False, debug: Debug = False) -> None:
    """Find when a hinge collapses and what prevents it: trainings of equal compute, several seeds."""
    from pipelines.commands import collapse_study
    from pipelines.config import load_config

    OUTPUT.finish(collapse_study(load_config(config, set_ or ())))


@app.command("config")
@reported
def show_config(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)
    ] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print the reference of every key instead.")
    ] = False,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Validate a configuration and print it with every default, every path absolute."""
    if describe:
        from pipelines.config import RunConfig
        from pipelines.describe import describe as reference

        sys.stdout.write(reference(RunConfig))
        return
    if config is None:
        raise ConfigError("no CONFIG given; name a YAML file, or ask for the reference with --describe")
    read_located_yaml(config)  # a wrong path is told before torch is loaded
    from pipelines.config import dump_config, load_config

    resolved = load_config(config, set_ or ())
    if not json:
        sys.stdout.write(dump_config(resolved))
    OUTPUT.finish({"config": resolved.model_dump(mode="json")})
