"""The commands that ask what was trained: serve it, search it, compare it; and keys for who may."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Debug, Json, StorePath
from pipelines.output import OUTPUT, reported
from pipelines.stored import open_store, published

app = typer.Typer()


@app.command()
@reported
def serve(
    store: StorePath,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    processes: Annotated[int | None, typer.Option(help="Server processes behind the port.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Take `serve` from this file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve the API and the page; follows the store's champion without a restart."""
    from pipelines.commands import serve_store

    serve_store(store, config, {"host": host, "port": port, "processes": processes})


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
    if bundle != "champion":
        published(open_store(store), bundle)  # before torch and faiss are loaded
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
