"""The command line, `twotower`. Heavy libraries are imported by the command that needs them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import ArtifactError, ConfigError
from pipelines.output import EXIT_CODES, OUTPUT, RefusedError, reported
from pipelines.store_cli import Debug, Json, StorePath
from pipelines.store_cli import app as store_commands
from pipelines.update_cli import app as update_commands
from pipelines.workspace import STAGES, Workspace

_CODES = " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="twotower",
    help="From click logs to a served two-tower retrieval index.",
    epilog=f"Exit codes: {_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

study = typer.Typer(help="Repeat a finding of this project on your data.", no_args_is_help=True)
app.add_typer(study, name="study")
app.add_typer(store_commands)
app.add_typer(update_commands)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one value of the configuration; repeatable."),
]
Refresh = Annotated[
    list[str] | None,
    typer.Option(
        "--refresh", metavar="STAGE", help="Do a stage again although its result is there; repeatable."
    ),
]


@app.command()
@reported
def run(
    config: ConfigPath, set_: Set = None, refresh: Refresh = None, json: Json = False, debug: Debug = False
) -> None:
    """Run the whole flow: ingest, examples, train, evaluate, export, promote.

    Stages whose result is in the store already are not done again; an interrupted run goes on.
    """
    summary = _flow(config, set_, refresh, "promote")
    _show_run(summary)
    OUTPUT.finish(summary)


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
    decision = summary["promotion"]
    if not decision["promoted"]:
        raise RefusedError(
            f"bundle {decision['bundle']} {decision['reason']}; --force promotes it all the same"
        )


@app.command()
@reported
def serve(
    store: StorePath,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Take `serve` from this configuration.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve the API and the page; follows the store's champion without a restart."""
    from pipelines.commands import serve_store

    serve_store(store, config, {"host": host, "port": port})


@app.command()
@reported
def search(
    store: StorePath,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Query text.", show_default=False)
    ] = None,
    history: Annotated[
        str | None,
        typer.Option("--history", metavar="ID,ID,…", help="Documents clicked before, oldest first."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of results.")] = 10,
    bundle: Annotated[str, typer.Option("--bundle", metavar="ID", help="Bundle to ask.")] = "champion",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer one query, the towers beside BM25."""
    from pipelines.commands import search_store

    earlier = None if history is None else [part.strip() for part in history.split(",") if part.strip()]
    OUTPUT.finish(search_store(store, bundle, text, earlier, k))


@app.command()
@reported
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Folder of an evaluation, a bundle or a store (its champion), or an id."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="RUN", help="The one to compare with it.")],
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Store in which ids (MLflow run, bundle, `champion`) are looked up."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the comparison as one HTML file.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two runs, bundles or evaluations, query by query where both have the same test queries."""
    from pipelines.commands import compare_runs

    OUTPUT.finish(compare_runs(a, b, store, page))


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


@app.command()
@reported
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets the key.", show_default=False)],
    admin: Annotated[bool, typer.Option("--admin", help="May administer, not only read.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an API key, and its line for the file that `serve.keys.file` names."""
    from serving.keys import new_key

    secret, line = new_key("admin" if admin else "read", name)
    OUTPUT.console.out(f"key, shown this once: {secret}\nline of the file:      {line}", highlight=False)
    OUTPUT.finish({"key": secret, "line": line})


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
    from pipelines.config import RunConfig, dump_config, load_config

    if describe:
        from pipelines.describe import describe as reference

        sys.stdout.write(reference(RunConfig))
        return
    if config is None:
        raise ConfigError("no CONFIG given; name a YAML file, or ask for the reference with --describe")
    resolved = load_config(config, set_ or ())
    if not json:
        sys.stdout.write(dump_config(resolved))
    OUTPUT.finish({"config": resolved.model_dump(mode="json")})


def _flow(config: Path, overrides: list[str] | None, refresh: list[str] | None, until: str) -> dict[str, Any]:
    """Check what can be checked at once, then run the flow up to a stage."""
    unknown = [name for name in refresh or () if name not in STAGES]
    if unknown:
        raise ConfigError(f"--refresh {unknown[0]}: not a stage; stages are {', '.join(STAGES)}")
    from pipelines.config import load_config

    resolved = load_config(config, overrides or ())  # mistakes are told before Prefect starts
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
    decision = summary["promotion"]
    say = OUTPUT.console.out
    if summary["all_cached"]:
        say("nothing to do: every stage was cached", highlight=False)
    verb = "serves" if decision["promoted"] else "does NOT serve"
    say(f"{summary['store']} {verb} bundle {decision['bundle']}: {decision['reason']}", highlight=False)
    if decision["promoted"]:
        say(f"next: twotower serve {summary['store']}", highlight=False)
    else:
        say(
            "next: more clicks or other settings; `twotower promote CONFIG --force` serves it anyway",
            highlight=False,
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        describe = getattr(error, "format_message", None)  # only usage errors have it
        if describe is None:
            raise
        if message := describe():  # none where the help was shown already
            OUTPUT.error(f"{message} (`twotower --help` lists the commands)")
        code = 2
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
