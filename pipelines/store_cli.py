"""The commands about a store's bundles: list, verify, roll back, prune, write vectors."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import ArtifactError, TwotowerError
from pipelines.options import Debug, Json, StorePath
from pipelines.output import OUTPUT, counted, reported
from pipelines.report import print_table
from pipelines.stored import open_store, published
from pipelines.workspace import Workspace
from serving.bundle_list import describe
from serving.candidates import shown_size
from serving.store import Store

app = typer.Typer()

_SYSTEM = "towers"


@app.command()
@reported
def bundles(store: StorePath, json: Json = False, debug: Debug = False) -> None:
    """List the store's bundles, oldest first, with their metrics; a star marks the champion."""
    opened = open_store(store)
    champion = opened.champion()
    served = champion.bundle_id if champion else None
    entries = [_entry(opened, bundle_id, served) for bundle_id in opened.bundle_ids()]
    metrics = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    header = ["bundle", "made", "documents", "index", *metrics, "size", "state"]
    lines = [
        [
            entry["bundle_id"] + (" *" if entry["champion"] else ""),
            entry["made"],
            "" if entry["documents"] is None else f"{entry['documents']:,}",
            entry["index"],
            *(f"{entry['metrics'][name]:.4f}" if name in entry["metrics"] else "" for name in metrics),
            shown_size(entry["bytes"]),
            entry["damage"] or entry["note"] or "",
        ]
        for entry in entries
    ]
    left = ("made", "index", "state")
    if entries:
        print_table(OUTPUT.console, f"{store}: {counted(len(entries), 'bundle')}", header, lines, left=left)
    else:
        OUTPUT.console.out(f"{store} has no bundle; `twotower run CONFIG` makes one", highlight=False)
    OUTPUT.finish({"store": str(store), "champion": served, "bundles": entries})


@app.command()
@reported
def verify(
    store: StorePath,
    bundle_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One bundle; all without it.")
    ] = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option("--trusted-key", metavar="PEM", help="Public key that may have signed; repeatable."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Encode every document again and compare it with its vector; takes long."
        ),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Open bundles as a server would: digests, trial load, canaries; exit code 4 if one is refused."""
    opened = open_store(store)
    opened.history()
    names = opened.bundle_ids() if bundle_id is None else [published(opened, bundle_id)]
    if not names:
        raise ArtifactError(f"{store} has no bundle to open; `twotower run CONFIG` makes one")
    from serving.agreement import compare
    from serving.bundle import load
    from serving.signing import read_public_key

    trusted = tuple(read_public_key(path) for path in trusted_key or ())
    found: dict[str, str | None] = {}
    for name in names:
        compared = ""
        try:
            bundle = load(opened.bundle(name).path, "cpu", trusted)
            if deep:
                compared = f", {compare(bundle) or 'no'} documents encoded again and compared"
            found[name] = None
        except TwotowerError as error:
            found[name] = str(error)
        OUTPUT.console.out(f"{name} {found[name] or f'is whole{compared}'}", highlight=False)
    OUTPUT.finish({"store": str(store), "bundles": found})
    refused = [name for name, problem in found.items() if problem]
    if refused:
        of_all = f"{len(refused)} of {counted(len(found), 'bundle')}"
        raise ArtifactError(f"{of_all} refused, and why is said above: {', '.join(refused)}")


@app.command()
@reported
def rollback(
    store: StorePath,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="An earlier champion; none is the one before.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept in the history.")] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the champion before this one the champion again; running servers follow without a restart.

    Earlier champions that are not whole any more are passed over. A bundle that was rolled back from is
    promoted again only with `twotower promote --force`.
    """
    opened = open_store(store)
    champion, passed_over = opened.roll_back(None if to is None else published(opened, to), reason)
    for problem in passed_over.values():
        OUTPUT.console.out(f"passed over: {problem}", highlight=False)
    OUTPUT.console.out(
        f"{store} serves bundle {champion.bundle_id} again, rolled back from {champion.rolled_back_from}",
        highlight=False,
    )
    OUTPUT.finish(
        {
            "store": str(store),
            "bundle": champion.bundle_id,
            "from": champion.rolled_back_from,
            "passed_over": passed_over,
        }
    )


@app.command()
@reported
def prune(
    store: StorePath,
    keep: Annotated[
        int,
        typer.Option(
            "--keep",
            min=0,
            help="Newest bundles that stay, besides the champion and what a rollback goes back to.",
            show_default=False,
        ),
    ],
    keep_days: Annotated[
        float, typer.Option("--keep-days", min=0, help="Bundles made in so many last days stay too.")
    ] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed and remove nothing.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove old bundles, and what killed runs left behind."""
    opened = open_store(store)
    from serving.pruning import prune as prune_store

    with Workspace(store).lock():
        done = prune_store(opened, keep, keep_days, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    say = OUTPUT.console.out
    for bundle_id, why in done.kept.items():
        say(f"keeps {bundle_id}: {why}", highlight=False)
    for name in (*done.removed, *done.abandoned):
        say(f"{verb} {name}", highlight=False)
    for name in done.collections:
        say(f"{verb} collection {name} of Milvus", highlight=False)
    for name in done.shared:
        say(f"left collection {name} in Milvus: another store claims it", highlight=False)
    for name, why in done.left.items():
        say(f"left collection {name} in Milvus, drop it there: {why}", highlight=False)
    removed = counted(len(done.removed), "bundle")
    say(f"{verb} {removed}, {shown_size(done.freed)} in all", highlight=False)
    OUTPUT.finish(
        {
            "store": str(store),
            "dry_run": dry_run,
            "removed": done.removed,
            "kept": done.kept,
            "abandoned": done.abandoned,
            "bytes": done.freed,
            "collections": done.collections,
            "collections_left": done.left,
            "collections_shared": done.shared,
        }
    )


@app.command()
@reported
def vectors(
    store: StorePath,
    path: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write.", show_default=False)],
    bundle: Annotated[str, typer.Option("--bundle", metavar="ID", help="Which bundle.")] = "champion",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the vectors of a bundle's documents as Parquet: `doc_id` and `vector`."""
    opened = open_store(store)
    from pipelines.comparison import champion_id
    from serving.bundle import load
    from serving.vectors_file import write_vectors

    chosen = champion_id(store) if bundle == "champion" else published(opened, bundle)
    written = load(opened.bundle(chosen).path, "cpu")
    count = write_vectors(written, path)
    OUTPUT.console.out(
        f"{path} holds {counted(count, 'vector')} of bundle {written.bundle_id}", highlight=False
    )
    OUTPUT.finish(
        {
            "store": str(store),
            "bundle": written.bundle_id,
            "path": str(path),
            "vectors": count,
            "dimension": written.index.dimension,
        }
    )


def _entry(store: Store, bundle_id: str, champion: str | None) -> dict[str, Any]:
    """Return what the list shows of a bundle; of a damaged one only what is wrong."""
    path = store.bundle_path(bundle_id)
    made = datetime.fromtimestamp(store.made_at(bundle_id), UTC).isoformat(sep=" ", timespec="minutes")
    entry: dict[str, Any] = {
        "bundle_id": bundle_id,
        "champion": bundle_id == champion,
        "made": made.removesuffix("+00:00"),
        "documents": None,
        "index": "",
        "metrics": {},
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "note": None,
        "damage": None,
    }
    try:
        told = describe(store.bundle(bundle_id))
        entry["documents"], entry["index"] = told["documents"], told["index"]["factory"]
        entry["note"] = told["update"]["note"] if told["update"] else None
        rows = [row for row in told["evaluation"] if row["system"] == _SYSTEM]
        entry["metrics"] = {str(row["metric"]): float(row["value"]) for row in rows}
    except (TwotowerError, KeyError, TypeError, ValueError, AttributeError) as error:
        entry["damage"] = " ".join(str(error).split())[:200]
    return entry
