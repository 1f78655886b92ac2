"""What the smaller commands of the command line do.

Each imports what it needs when it runs, so that none waits for libraries of another.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from features.artifact import Artifact
from features.errors import ArtifactError, ConfigError
from pipelines.comparison import champion_id, compare, find_evaluation, read_evaluation
from pipelines.output import OUTPUT
from pipelines.report import comparison_grid, html_page, print_table, results_grid
from pipelines.workspace import Workspace, stage_key

if TYPE_CHECKING:  # it imports torch and faiss, which not every command needs
    from pipelines.config import RunConfig

_WHY_NOTHING = {"bm25": "; no document shares a word with the query"}


def serve_store(
    store: Path,
    config: Path | None,
    changes: Mapping[str, Any],
    set_up: Callable[[], None] | None = None,
) -> None:
    """Serve a store until interrupted.

    Args:
        store: The store's folder.
        config: Names the settings; the defaults where there is none.
        changes: Settings of `serve` that go before; None is not set.
        set_up: Called first in each of several server processes instead of configuring logging; picklable.

    Raises:
        ArtifactError: If the folder is not a store.
        ConfigError: If the address cannot be used.
    """
    if not store.is_dir():
        raise ArtifactError(f"{store} is not a folder; give the `store` of a configuration that was run")
    from pipelines.config import load_serve_config
    from serving.api import ServeConfig, serve

    settings = load_serve_config(config) if config else ServeConfig()
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        settings = ServeConfig.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from None
    log_to_stderr("%(message)s")
    serve(store, settings, set_up or partial(log_to_stderr, "%(processName)s: %(message)s"))


def log_to_stderr(form: str) -> None:
    """Send log lines of a server to stderr in one form, each with the trace of its request."""
    from serving.trace import TraceFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TraceFormatter(form))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("serving").setLevel(logging.INFO)


def search_store(
    store: Path, bundle_id: str, text: str | None, history: list[str] | None, k: int
) -> dict[str, Any]:
    """Answer one query with the towers and with BM25, print both, and return them.

    Raises:
        QueryError: If the bundle cannot answer such a query.
        ArtifactError: If the store has no such bundle.
    """
    chosen = champion_id(store) if bundle_id == "champion" else bundle_id
    from serving.bundle import load
    from serving.retriever import Hit, Retriever
    from serving.search import Search
    from serving.store import Store

    retriever = Retriever(load(Store(store).bundle(chosen).path))
    asked = Search(text=text, history=None if history is None else tuple(history), k=k)
    answers = {
        "towers": retriever.answer(asked),
        "bm25": retriever.answer(replace(asked, mode="bm25")),
    }

    def described(hit: Hit) -> dict[str, Any]:
        title = retriever.title(hit.doc_id)
        return {"rank": hit.rank, "doc_id": hit.doc_id, "score": hit.score, "title": title}

    document: dict[str, Any] = {"bundle": chosen, "text": text, "history": history}
    for name, answer in answers.items():
        document[name] = [described(hit) for hit in answer.hits]
        lines = [
            [str(hit["rank"]), f"{hit['score']:.4f}", hit["doc_id"], hit["title"]] for hit in document[name]
        ]
        header = ["rank", "score", "doc_id", "title"]
        found = name if lines else f"{name}: nothing found{_WHY_NOTHING.get(name, '')}"
        print_table(OUTPUT.console, found, header, lines, left=("doc_id", "title"))
    document["unknown"] = answers["towers"].unknown
    if document["unknown"]:
        OUTPUT.console.out(
            f"not in the catalogue, so left out: {', '.join(document['unknown'])}", highlight=False
        )
    return document


def compare_runs(a: str, b: str, store: Path | None, page: Path | None) -> dict[str, Any]:
    """Compare two evaluations, print the table, write the page, and return both.

    Raises:
        ArtifactError: If one is not found, or they share no metric.
        ConfigError: If the page cannot be written.
    """
    paths = [find_evaluation(name, store).resolve() for name in (a, b)]
    first, second = (read_evaluation(path, name) for path, name in zip(paths, (a, b), strict=True))
    rows = compare(first, second)
    if not rows:
        raise ArtifactError(f"{a} and {b} share no metric on common queries")
    is_paired = first.data == second.data
    if paths[0] == paths[1]:
        note = "A and B have one evaluation, so nothing differs: an update of documents is not evaluated."
    elif is_paired:
        note = (
            "Evaluated on the same test queries: paired differences with 95% bootstrap intervals, "
            "randomisation test."
        )
    else:
        note = "Evaluated on different test data: not paired; the interval spans both intervals."
    header, lines = comparison_grid(rows, "A", "B")
    print_table(OUTPUT.console, f"A = {a}, B = {b}. {note}", header, lines)
    if page is not None:
        tables = [
            ("A and B", header, lines),
            (f"A = {a}", *results_grid(first.rows, "all")),
            (f"B = {b}", *results_grid(second.rows, "all")),
        ]
        text = html_page("Comparison of two runs", [f"A = {a}", f"B = {b}", note], tables)
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--html {page} cannot be written: {error.strerror}; name a new file") from None
    return {"a": a, "b": b, "paired_queries": is_paired, "comparison": rows}


def collapse_study(config: "RunConfig") -> dict[str, Any]:
    """Run `twotower study collapse`, print its table and say where its files are."""
    from rich.console import Console

    from pipelines.progress import Progress
    from pipelines.study import run_collapse_study, table

    report = run_collapse_study(config, Progress(Console(stderr=True)))
    OUTPUT.console.out(table(report["arms"]), highlight=False)
    OUTPUT.console.out("written: " + ", ".join(report["files"]), highlight=False)
    return report


def simulate_shop(directory: Path, sessions: int | None, seed: int) -> dict[str, Any]:
    """Write a simulated shop and say what was written.

    Raises:
        ConfigError: If a number is out of range.
    """
    from features.simulate import SimulateConfig, simulate

    given = {"seed": seed} | ({} if sessions is None else {"sessions": sessions})
    try:
        config = SimulateConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(_first_mistake(error)) from None
    artifact = simulate(directory, config)
    OUTPUT.console.out(f"{directory}: {_facts(artifact)}", highlight=False)
    return {"directory": str(directory), "digest": artifact.digest, "content": dict(artifact.content)}


def evaluate_bundle(config: "RunConfig", bundle: str, judgements: Path | None) -> dict[str, Any]:
    """Score an exported bundle, on judged queries or on its held-out clicks, with the baselines beside it.

    Args:
        config: Names the store, the metrics, and (unless `judgements` is given) the judged queries.
        bundle: A bundle id of the store, or `champion`.
        judgements: File of judged queries in any format that `qrels` in a configuration may have.

    Returns:
        `bundle`, `path` of the evaluation artifact, its `evaluation` list and `verdict`.

    Raises:
        ArtifactError: If the store does not have the bundle or its examples.
        SchemaError: If the judgements cannot be read.
    """
    from pipelines.config import portable
    from pipelines.judged import prepared_qrels, qrels_config
    from serving.store import Store
    from towers.evaluate import evaluate

    workspace = Workspace(config.store)
    chosen = champion_id(config.store) if bundle == "champion" else bundle
    artifact = Store(config.store).bundle(chosen)
    record = next((r for r in workspace.records("exports") if r.get("bundle") == chosen), None)
    if record is None:
        raise ArtifactError(f"{config.store} does not know from which examples bundle {chosen} was made")
    with workspace.lock():
        source = qrels_config(config, judgements)
        qrels = None if source is None else prepared_qrels(workspace, source)
        inputs = {"bundle": artifact.digest, "qrels": "" if qrels is None else qrels.stem}
        key = stage_key("evaluate", portable(config.evaluate), inputs)
        target = workspace.target("evaluate", key)
        if workspace.find("evaluate", key) is None:
            evaluate(Path(record["examples"]), artifact.path, target, config.evaluate, qrels=qrels)
    result = read_evaluation(target)
    return {
        "bundle": chosen,
        "path": str(target),
        "evaluation": result.rows,
        "decision": config.evaluate.decision,
        "verdict": result.verdict,
    }


def _facts(artifact: Artifact) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
        for name, counts in artifact.content.items()
        if name in ("log", "qrels")
    )


def _first_mistake(error: ValidationError) -> str:
    item = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in item["loc"])
    said = item["msg"].removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]} (got {item['input']!r})"
