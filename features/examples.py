"""From the lake to what the towers learn from and are judged by: the `examples` artifact."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend
from pydantic import Field, model_validator

from features.artifact import Artifact, publish
from features.clicks import ClicksConfig, drop_lists, judge_shown, number_lists, skipped_documents
from features.compute import number
from features.config import Config
from features.engine import EngineConfig, connect, materialise, read_parquet
from features.errors import ConfigError, SchemaError
from features.example_files import KNOWN_POSITIVES, LISTS, QUERIES, TRAIN, documents_schema, write_parquet
from features.example_log import Log, count_examples
from features.heldout import held_out
from features.histories import clicks_before, latest
from features.lake import read_documents, read_impressions
from features.popularity import document_statistics
from features.propensity import PositionBias, estimate_position_bias, weigh_by_propensity
from features.splits import (
    HELD_OUT,
    PARTS,
    SessionSplit,
    Split,
    SplitConfig,
    TimeSplit,
    assign_parts,
    check_histories,
    check_no_leakage,
    cuts,
)
from features.tables import IMPRESSIONS
from features.text import document_text, normalise


class ExamplesConfig(Config):
    """How a log becomes examples. Whatever is counted is counted in the train lists only."""

    query: Literal["text", "history"] = Field(
        description="What a query is: the text that was typed, or what the user had clicked before; "
        "never guessed."
    )
    split: SplitConfig = Field(
        TimeSplit(), description="What is held out: by time, last_impression or session."
    )
    clicks: ClicksConfig = Field(ClicksConfig(), description="Which clicks count and what was examined.")
    history_length: int = Field(50, ge=1, description="Latest clicks that make a history.")
    minimum_history: int = Field(
        0, ge=0, description="Shorter histories give neither train rows nor evaluation queries (0 keeps all)."
    )
    weight: Literal["click", "list", "inverse_propensity"] = Field(
        "click",
        description="What weighs 1 in training: each click, each list (shared by its clicks), or the average "
        "click, where one at a place that is rarely looked at weighs more (features.propensity).",
    )
    propensity_floor: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Places looked at less than this share of the best place's looks weigh as if at this "
        "share (inverse_propensity); lower corrects more bias and adds variance.",
    )
    ctr_prior_strength: float = Field(
        20.0, gt=0, description="Impressions at the mean click-through rate that every document starts with."
    )
    graded: bool = Field(False, description="Relevance is the number of lists with a click instead of 1.")
    exclude_seen: bool = Field(
        False,
        description="For history queries: documents that the user had clicked before are neither ranked nor "
        "relevant. Off by default, as people buy and watch again.",
    )
    engine: EngineConfig = Field(
        EngineConfig(), description="Where the tables are computed; changes no result."
    )

    @model_validator(mode="after")
    def _only_histories_know_what_was_seen(self) -> "ExamplesConfig":
        if self.query == "text" and (self.exclude_seen or self.minimum_history):
            raise ValueError(
                "exclude_seen and minimum_history need query: history; a text query has no one user"
            )
        return self


def build_examples(lake: Path, target: Path, config: ExamplesConfig) -> Artifact:
    """Turn a lake into train rows, evaluation queries and past statistics of documents.

    Args:
        lake: A `lake` artifact.
        target: The `examples` artifact to publish.
        config: What a query is, what is held out, which clicks count.

    Returns:
        The published artifact; docs/architecture.md describes its files. Equal inputs give an equal digest.

    Raises:
        SchemaError: If the log is too small to learn from: no click, one document, one query.
        ConfigError: If the split leaves train, validation or test empty.
        LeakageError: If something held out would reach training.
    """
    source = Artifact.read(lake, "lake")
    content: dict[str, Any] = {
        "config": config.model_dump(mode="json", exclude={"engine"}),
        "lake": source.digest,
    }
    connection = connect(config.engine)
    try:
        with publish(target, "examples", content) as staging:
            impressions, documents = _open(connection, lake, config)
            log = _read_log(connection, impressions, documents, config)
            _check_size(log, documents)
            keyed = _with_histories(connection, log, config)
            bias = _write_train(connection, log, keyed, staging, config)
            if bias is not None:
                content["position_bias"] = bias.describe()
            train = read_parquet(connection, [staging / "train.parquet"])
            check_no_leakage(train, log.lists, config.split)
            _write_documents(connection, log, documents, train, staging, config)
            for part in HELD_OUT:
                _write_held_out(connection, log, keyed, part, staging, config)
            content["cut"], content["test_from"] = (
                [moment.isoformat() for moment in log.moments] if log.moments else [None, None]
            )
            content["counts"] = count_examples(log, keyed, connection, staging)
            _check_parts(content["counts"], config)
    finally:
        connection.disconnect()
    return Artifact.read(target, "examples")


def _open(connection: BaseBackend, lake: Path, config: ExamplesConfig) -> tuple[ir.Table, ir.Table]:
    """Return the lake's impressions and documents."""
    for name in ("impressions", "documents"):
        if not any((lake / name).rglob("*.parquet")):
            raise SchemaError(f"{lake} holds no {name}; look at its quarantine, then ingest the log again")
    impressions, documents = read_impressions(lake, connection), read_documents(lake, connection)
    session = config.split.session_column if isinstance(config.split, SessionSplit) else None
    if session is not None and session not in impressions.columns:
        raise ConfigError(
            f"examples.split.session_column {session!r} is not a column of the impressions; "
            f"it has {', '.join(impressions.columns)}"
        )
    columns = dict.fromkeys([*IMPRESSIONS.names, *([session] if session else [])])
    return impressions.select(*columns), documents


def _read_log(
    connection: BaseBackend, impressions: ir.Table, documents: ir.Table, config: ExamplesConfig
) -> Log:
    """Order, split and denoise the log."""
    split = config.split
    session_column = split.session_column if isinstance(split, SessionSplit) else None
    lists = materialise(connection, "numbered", number_lists(impressions, session_column))
    moments = cuts(lists, split) if isinstance(split, TimeSplit) and number(lists.count()) else None
    lists = _with_query_keys(drop_lists(assign_parts(lists, split, moments), config.clicks), config)
    lists = materialise(connection, "lists", lists)
    recorded = impressions.semi_join(documents, "doc_id")  # a lake may keep documents without a record
    shown = materialise(connection, "shown", judge_shown(recorded, lists, config.clicks))
    positives = shown.filter(shown.positive).select("list", "doc_id", "position")
    positives = materialise(connection, "positives", positives)
    clicks = positives.inner_join(lists, "list")
    clicks = clicks.filter(clicks.part == "train", clicks.query_key.notnull())
    known = clicks.group_by("query_key", "doc_id").agg(clicks=clicks.count())
    return Log(lists, shown, positives, materialise(connection, "known", known), moments)


def _with_query_keys(lists: ir.Table, config: ExamplesConfig) -> ir.Table:
    """Add `query_key` (null where a list has no query) and `query_id`, unique per evaluation query."""
    if config.query == "history":
        lists = lists.mutate(query_text=ibis.null("string"))
        return lists.mutate(query_key=lists.user_id, query_id=lists.impression_id)
    texts = (
        lists.filter(lists.query_text.notnull()).select("query_text").distinct().to_pyarrow()["query_text"]
    )
    keys = [normalise(text) or None for text in texts.to_pylist()]
    table = pa.table({"raw": texts, "query_key": pa.array(keys, pa.string())})
    keyed = ibis.memtable(table)
    found = lists.left_join(keyed, lists.query_text == keyed.raw).drop("raw")
    return found.mutate(query_text=found.query_key, query_id=found.query_key.hexdigest("md5"))


def _check_size(log: Log, documents: ir.Table) -> None:
    """Refuse a log from which nobody can learn."""
    if not number(log.positives.count()):
        raise SchemaError(
            f"no click counts in the log's {number(log.lists.count())} lists; nothing can be "
            "learnt from it: check how its clicks are mapped, and examples.clicks"
        )
    if number(documents.count()) < 2:
        raise SchemaError("the catalogue has one document; retrieval needs at least two")
    queries = number(log.lists.filter(log.lists.dropped.isnull()).query_key.nunique())
    if queries < 2:
        raise SchemaError(
            f"the log has {queries} distinct queries; in-batch negatives need at least two: "
            "check examples.query, and how query texts and users are mapped"
        )


def _with_histories(connection: BaseBackend, log: Log, config: ExamplesConfig) -> ir.Table:
    """Return the lists that can become examples: kept, with a query, with a click and with enough history."""
    lists = log.lists.filter(log.lists.dropped.isnull(), log.lists.query_key.notnull())
    lists = lists.semi_join(log.positives, "list")
    if config.query == "text":
        nothing = ibis.literal([], type="array<string>")
        return materialise(connection, "keyed", lists.mutate(earlier=nothing, history=nothing))
    lists = lists.inner_join(_earlier_clicks(log, config.split), "list")
    lists = lists.mutate(history=latest(lists.earlier, config.history_length))
    if not config.exclude_seen:
        lists = lists.mutate(earlier=lists.history)  # nobody reads it; a long one would only take memory
    keyed = materialise(connection, "keyed", lists.filter(lists.history.length() >= config.minimum_history))
    clicks = log.positives.inner_join(log.lists, "list").select("list", "user_id", "doc_id")
    check_histories(keyed, clicks)
    return keyed


def _earlier_clicks(log: Log, split: Split) -> ir.Table:
    """Return what each list's user had clicked before it: for a train list, in train lists only."""
    everything = clicks_before(log.positives, log.lists)
    if not isinstance(split, SessionSplit):
        return everything  # no held-out list of a user is before a train list
    train = log.lists.filter(log.lists.part == "train")
    of_train = clicks_before(log.positives.semi_join(train, "list"), train)
    return of_train.union(everything.anti_join(train, "list"))


def _write_train(
    connection: BaseBackend, log: Log, keyed: ir.Table, staging: Path, config: ExamplesConfig
) -> PositionBias | None:
    """Write the train rows and the known positives; return the position bias where weights correct it."""
    known = log.known.select("query_key", "doc_id")
    rows = log.positives.inner_join(keyed.filter(keyed.part == "train"), "list")
    rows = rows.left_join(skipped_documents(log.shown, log.lists, known), "list")
    bias, clicks = None, ibis.literal(1)
    if config.weight == "list":
        clicks = rows.count().over(ibis.window(group_by=rows.list))
    rows = rows.mutate(
        positive_doc_id=rows.doc_id,
        unclicked_doc_ids=ibis.coalesce(rows.unclicked_doc_ids, ibis.literal([], type="array<string>")),
        weight=1.0 / clicks,
    )
    if config.weight == "inverse_propensity":
        train = log.lists.filter(log.lists.part == "train").select("list", "query_key")
        bias = estimate_position_bias(connection, log.shown.inner_join(train, "list"))
        rows = weigh_by_propensity(rows, bias, config.propensity_floor)
    order = ["timestamp", "impression_id", "positive_doc_id"]
    write_parquet(connection, rows, staging / "train.parquet", TRAIN, order)
    write_parquet(
        connection, known, staging / "known_positives.parquet", KNOWN_POSITIVES, ["query_key", "doc_id"]
    )
    return bias


def _write_documents(
    connection: BaseBackend,
    log: Log,
    documents: ir.Table,
    train: ir.Table,
    staging: Path,
    config: ExamplesConfig,
) -> None:
    lists = log.lists.filter(log.lists.part == "train")
    shown = log.shown.semi_join(lists, "list")
    statistics = document_statistics(documents, shown, train, ctr_prior_strength=config.ctr_prior_strength)
    contents = documents.select("doc_id", "title", "text", "image").to_pyarrow()
    keys = [content_key(**row) for row in contents.to_pylist()]
    keyed = ibis.memtable(
        pa.table({"doc_id": contents["doc_id"], "content_key": pa.array(keys, pa.string())})
    )
    rows = documents.inner_join(keyed, "doc_id").inner_join(statistics, "doc_id")
    schema = documents_schema(documents.schema().to_pyarrow())
    write_parquet(connection, rows, staging / "documents.parquet", schema, ["doc_id"])


def content_key(doc_id: str, title: str, text: str, image: str | None) -> str:
    """Return a key that documents of equal text share; without text their image, else nothing, is shared."""
    words = normalise(document_text(title, text))
    content = f"text {words}" if words else f"image {image}" if image else f"id {doc_id}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _write_held_out(
    connection: BaseBackend, log: Log, keyed: ir.Table, part: str, staging: Path, config: ExamplesConfig
) -> None:
    lists = keyed.filter(keyed.part == part)
    found = held_out(log.positives, log.shown, lists, graded=config.graded, exclude_seen=config.exclude_seen)
    frequency = log.known.group_by("query_key").agg(frequency=log.known.clicks.sum())
    queries = found.queries.left_join(frequency, "query_key")
    if config.query == "text":
        queries = queries.mutate(user_id=ibis.null("string"))  # one text, many users
    queries = queries.mutate(
        frequency=ibis.coalesce(queries.frequency, 0), seen_query=queries.frequency.notnull()
    )
    write_parquet(connection, queries, staging / f"{part}.parquet", QUERIES, ["timestamp", "query_id"])
    write_parquet(connection, found.lists, staging / f"{part}_lists.parquet", LISTS, ["impression_id"])


_MORE = {
    "time": "change examples.split.test_share and validation_share, or test_from and validation_from",
    "last_impression": "raise examples.split.validation_share, or split by time if users have one list only",
    "session": "change examples.split.test_share and validation_share, or split by time",
}


def _check_parts(counts: dict[str, Any], config: ExamplesConfig) -> None:
    empty = [part for part in PARTS if not counts[part]]
    if empty:
        have = ", ".join(f"{counts[part]} {part}" for part in PARTS)
        raise ConfigError(
            f"the split by {config.split.by} leaves {' and '.join(empty)} without a click: {have} rows "
            f"from {counts['lists']['total']} lists; {_MORE[config.split.by]}"
        )
