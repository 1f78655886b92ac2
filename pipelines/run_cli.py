"""The commands about a configuration's run: the whole flow, one stage of it, or by the clock."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import ConfigError
from pipelines.located_yaml import read_located_yaml
from pipelines.options import ConfigPath, Debug, Json, Refresh, Set
from pipelines.output import OUTPUT, RefusedError, reported
from pipelines.workspace import STAGES, Workspace

app = typer.Typer()


@app.command()
@reported
def run(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Run the whole flow: ingest, examples, train, evaluate, export, promote.

    Stages whose result is in the store already are not done again; an interrupted run goes on. Exit code 5
    if everything was done but the bundle was not promoted.
    """
    summary = _flow(config, set_, refresh, "promote")
    _show_run(summary)
    OUTPUT.finish(summary)
    _check_promotion(summary)


@app.command()
@reported
def ingest(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Read the logs and the catalogue into the lake."""
    OUTPUT.finish(_flow(config, set_, refresh, "ingest"))


@app.command()
@reported
def examples(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Build training examples and test queries; ingests first where needed."""
    OUTPUT.finish(_flow(config, set_, refresh, "examples"))


@app.command()
@reported
def train(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Train the towers; does the stages before it where needed, and resumes an interrupted training."""
    OUTPUT.finish(_flow(config, set_, refresh, "train"))


@app.command()
@reported
def evaluate(
    config: ConfigPath,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle", metavar="ID", help="Score this bundle of the store (or `champion`) instead."
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            "--qrels", metavar="PATH", help="Judged queries to score on instead of held-out clicks."
        ),
    ] = None,
    set_: Set = None,
    refresh: Refresh = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rank the whole corpus for every test query, with the baselines beside the towers.

    With --bundle or --qrels an exported bundle is scored (without --bundle: the champion) on judged
    queries (without --qrels: those of the configuration, or its held-out clicks); the store's champion
    does not change.
    """
    if bundle is None and qrels is None:
        summary = _flow(config, set_, refresh, "evaluate")
    else:
        from pipelines.commands import evaluate_bundle
        from pipelines.config import load_config

        summary = evaluate_bundle(load_config(config, set_ or ()), bundle or "champion", qrels)
    _show_evaluation(summary)
    OUTPUT.finish(summary)


@app.command()
@reported
def export(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Encode the corpus, build the index and publish the bundle; does the stages before it where needed."""
    summary = _flow(config, set_, refresh, "export")
    _show_index(summary)
    OUTPUT.finish(summary)


@app.command()
@reported
def promote(
    config: ConfigPath,
    force: Annotated[
        bool, typer.Option("--force", help="Promote all the same and keep the objections.")
    ] = False,
    set_: Set = None,
    refresh: Refresh = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the bundle the champion if it earns it; exit code 5 if it does not."""
    overrides = [*(set_ or ()), *(["promote.force=true"] if force else [])]
    summary = _flow(config, overrides, refresh, "promote")
    OUTPUT.finish(summary)
    _check_promotion(summary)


@app.command()
@reported
def schedule(
    config: ConfigPath,
    cron: Annotated[
        str, typer.Option("--cron", help='When to run, such as "0 3 * * *".', show_default=False)
    ],
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of the cron expression.")] = "UTC",
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Register a Prefect deployment that runs CONFIG by the clock, and stay to run it.

    Needs a Prefect server: start one with `prefect server start` and set PREFECT_API_URL.
    """
    from pipelines.scheduling import serve_deployment

    serve_deployment(config, set_ or [], cron, timezone)


def _flow(config: Path, overrides: list[str] | None, refresh: list[str] | None, until: str) -> dict[str, Any]:
    """Check what can be checked at once, then run the flow up to a stage."""
    unknown = [name for name in refresh or () if name not in STAGES]
    if unknown:
        raise ConfigError(f"--refresh {unknown[0]}: not a stage; stages are {', '.join(STAGES)}")
    read_located_yaml(config)  # a wrong path is told before torch is loaded
    from pipelines.config import load_config

    resolved = load_config(config, overrides or ())  # other mistakes are told before Prefect starts
    resolved.source.files()
    if resolved.qrels is not None and STAGES.index(until) >= STAGES.index("evaluate"):
        from pipelines.judged import prepared_qrels

        prepared_qrels(Workspace(resolved.store), resolved.qrels)  # and before a long training
    if resolved.sign is not None and STAGES.index(until) >= STAGES.index("export"):
        from serving.signing import read_private_key

        read_private_key(resolved.sign.key)
    sys.stderr.write("starting  Prefect and MLflow; this takes some seconds\n")
    from pipelines.flows import twotower_run

    summary: dict[str, Any] = twotower_run(str(config), list(overrides or ()), until, list(refresh or ()))
    return summary


def _show_evaluation(summary: dict[str, Any]) -> None:
    from pipelines.report import print_results

    print_results(OUTPUT.console, summary["evaluation"], summary.get("decision"))
    if summary.get("verdict"):
        OUTPUT.console.out(summary["verdict"], highlight=False)


def _show_index(summary: dict[str, Any]) -> None:
    from features.artifact import Artifact
    from pipelines.report import print_index

    bundle = next(stage["path"] for stage in summary["stages"] if stage["stage"] == "export")
    print_index(OUTPUT.console, Artifact.read(Path(bundle)).content)


def _show_run(summary: dict[str, Any]) -> None:
    _show_evaluation(summary)
    decision, store = summary["promotion"], _shown(summary["store"])
    say = OUTPUT.console.out
    if summary["all_cached"]:
        say("nothing to do: every stage was cached", highlight=False)
    if decision["promoted"]:
        say(f"{store} serves bundle {decision['bundle']}: {decision['reason']}", highlight=False)
        say(f"next: twotower serve {shlex.quote(store)}", highlight=False)


def _check_promotion(summary: dict[str, Any]) -> None:
    """Raise what ends a command with its own exit code where the bundle was not promoted."""
    decision = summary["promotion"]
    if decision["promoted"]:
        return
    from pipelines.stored import force_command
    from serving.store import Store

    champion = Store(Path(summary["store"])).champion()
    served = f"serves {champion.bundle_id} as before" if champion else "serves nothing yet"
    raise RefusedError(
        f"bundle {decision['bundle']} {decision['reason']}; {_shown(summary['store'])} {served}; bring more "
        f"clicks or change settings, or promote it all the same: {force_command(summary)}"
    )


def _shown(path: str) -> str:
    """Return a path as short as it can be typed from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
