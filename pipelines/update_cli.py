"""`twotower update`: documents of a served bundle added, replaced and deleted without a training."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.artifact import Artifact
from features.errors import ArtifactError, ConfigError, SchemaError
from pipelines.options import Debug, Json, StorePath
from pipelines.output import OUTPUT, RefusedError, counted, reported
from pipelines.stored import open_store, published
from pipelines.workspace import Workspace
from serving.signing import SignConfig, TrustedKey, is_signed, read_private_key
from serving.store import Store, rolled_back

if TYPE_CHECKING:  # it imports torch and faiss
    from serving.provenance import HeldOut

app = typer.Typer()


@app.command()
@reported
def update(
    store: StorePath,
    documents: Annotated[
        list[Path] | None,
        typer.Option(
            "--documents",
            metavar="FILE",
            help="Documents to add or to replace: CSV, JSON lines or Parquet with doc_id, every feature of "
            "the configuration, and title, text, image, updated_at where there are any, under these names.",
        ),
    ] = None,
    delete: Annotated[
        list[str] | None,
        typer.Option(
            "--delete", metavar="ID|@FILE", help="Id to delete, or a file with one a line; repeatable."
        ),
    ] = None,
    bundle: Annotated[str, typer.Option("--bundle", metavar="ID", help="Bundle to start from.")] = "champion",
    rebuild_share: Annotated[
        float,
        typer.Option(
            "--rebuild-share", min=0, max=1, help="Share of tombstones past which the index is built again."
        ),
    ] = 0.2,
    promote: Annotated[bool, typer.Option("--promote", help="Make the new bundle the champion.")] = False,
    sign_key: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            metavar="PEM",
            help="Private key to sign the new bundle with; it must have signed the bundle to start from, "
            "too, unless --trusted-key is given.",
        ),
    ] = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--trusted-key",
            metavar="PEM",
            help="Public key that may have signed the bundle to start from; repeatable.",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add, replace and delete documents of a bundle without training: a new bundle, its parent unchanged."""
    opened = open_store(store)
    if not documents and not delete:
        raise ConfigError("nothing to change; give --documents FILE, --delete ID, or both")
    if bundle != "champion":
        published(opened, bundle)
    if len(documents or []) > 1:
        raise ConfigError("--documents was given more than once; put all documents into one file")
    trusted: tuple[TrustedKey, ...] = tuple(trusted_key or ())
    sign = None if sign_key is None else SignConfig(key=sign_key)
    if sign is not None:
        trusted = trusted or (read_private_key(sign.key).public_key(),)
    with Workspace(store).lock():
        file = next(iter(documents or []), None)
        told = _update(Store(store, trusted), bundle, file, _ids(delete or []), rebuild_share, sign)
        again = promote and told["bundle"] in rolled_back(Store(store).history())
        told["promoted"] = promote and not again
        if told["promoted"]:
            changed = ", ".join(f"{told[name]} {name}" for name in ("added", "updated", "deleted"))
            Store(store).set_champion(told["bundle"], f"update of {told['parent']}: {changed}")
    _say(store, told, asked=promote)
    OUTPUT.finish(told)
    if again:
        raise RefusedError(
            f"bundle {told['bundle']} was the champion and was rolled back, so it is not promoted again; "
            f"`twotower rollback {store} --to {told['bundle']}` takes it all the same"
        )


def _update(
    store: Store,
    bundle: str,
    documents: Path | None,
    deleted: list[str],
    rebuild_share: float,
    sign: SignConfig | None,
) -> dict[str, Any]:
    """Publish the new bundle, note from which artifacts it comes, and return the facts about it."""
    from pipelines.comparison import champion_id

    parent = store.bundle(champion_id(store.root) if bundle == "champion" else bundle)
    import pyarrow.parquet as pq

    catalogue = pq.read_table(parent.path / "documents.parquet")
    _check_deleted(deleted, catalogue["doc_id"].to_pylist(), f"bundle {parent.path.name} of {store.root}")
    rows = None
    if documents is not None:
        from features.changes import read_changes

        rows = read_changes(documents, catalogue)
    sys.stderr.write("updating  torch and faiss are loaded first; this takes some seconds\n")
    from serving.update import Changes, UpdateConfig, update

    workspace = Workspace(store.root)
    record = next((r for r in workspace.records("exports") if r.get("bundle") == parent.path.name), None)
    artifact = update(
        parent.path,
        workspace.bundles,
        Changes(rows, deleted),
        UpdateConfig(rebuild_share=rebuild_share),
        _held_out(record, parent),
        trusted_keys=store.trusted_keys,
        sign=sign,
    )
    if record is not None:  # the towers are the same, and so is their evaluation
        workspace.write_record("exports", artifact.path.name, {**record, "bundle": artifact.path.name})
    facts = dict(artifact.content["update"])
    recall = artifact.content["index"]["ann_recall"]
    documents_left = artifact.content["documents"]
    told = {"store": str(store.root), "bundle": artifact.path.name, "documents": documents_left, **facts}
    signatures = {"parent_signed": is_signed(parent.path), "signed": is_signed(artifact.path)}
    return told | signatures | {"ann_recall": recall}


def _held_out(record: dict[str, Any] | None, bundle: Artifact) -> "HeldOut | None":
    """Return the held-out queries of the very examples that a bundle was made from, if they are there."""
    from serving.provenance import HeldOut

    if record is None:
        return None
    try:
        examples = Artifact.read(Path(record["examples"]), "examples", verify=True)
        if examples.digest != bundle.content["examples"]["digest"]:
            return None
        return HeldOut.read(examples.path)
    except (ArtifactError, OSError):
        return None


def _ids(given: list[str]) -> list[str]:
    """Return the ids to delete; a name after @ is a file of them."""
    ids = []
    for one in given:
        if not one.startswith("@"):
            ids.append(one)
            continue
        try:
            lines = Path(one[1:]).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise SchemaError(f"--delete {one}: no readable text ({why}); name a file of ids") from None
        ids += [line for line in (line.removesuffix("\r") for line in lines) if line]
    return ids


def _check_deleted(deleted: Sequence[str], known: Sequence[str], bundle: str) -> None:
    """Refuse to delete what a bundle does not have, before torch is loaded."""
    unknown = sorted(set(deleted) - set(known))
    if unknown:
        others = f", nor {counted(len(unknown) - 1, 'other id')} of those given" if len(unknown) > 1 else ""
        raise SchemaError(
            f"--delete {unknown[0][:60]}: {bundle} has no such document{others}; leave out what is gone, and "
            f"write ids as it does, such as {known[0]}"
        )


def _say(store: Path, told: dict[str, Any], *, asked: bool) -> None:
    say = OUTPUT.console.out
    recall = told["ann_recall"]
    queries = counted(recall["queries"], "query", "queries")
    say(
        f"bundle {told['bundle']} from {told['parent']}: {told['added']} added, {told['updated']} updated, "
        f"{told['deleted']} deleted, {counted(told['documents'], 'document')}, "
        f"{counted(told['tombstones'], 'tombstone')}"
        f"{', index built again' if told['rebuilt'] else ''}",
        highlight=False,
    )
    say(
        f"ANN recall@{recall['k']} {recall['value']:.4f} on {queries} ({recall['split']})",
        highlight=False,
    )
    served = "serves it now" if told["promoted"] else "does not serve it"
    if not asked:
        served += "; --promote would"
    say(f"{store} {served}", highlight=False)
    if told["parent_signed"] and not told["signed"]:
        sys.stderr.write(
            f"warning: {told['parent']} is signed and {told['bundle']} is not; servers with trusted_keys "
            "refuse it, and `update --sign PEM` again signs it\n"
        )
