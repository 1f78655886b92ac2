"""The catalogue: documents from CSV, JSON lines or Parquet, columns mapped by configuration."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import ibis.expr.types as ir
from ibis.backends import BaseBackend
from pydantic import BeforeValidator, Field

from features.config import Config
from features.errors import ConfigError
from features.readers.files import Kind, Paths, describe, find_files
from features.readers.raw import RESERVED, check_names
from features.readers.relations import MissingColumnError, Relation, Wanted
from features.readers.values import Zone, identifier, literal
from features.tables import DOCUMENTS, Refusal

FeatureType = Literal["string", "double", "list"]
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One name, or several."""

Features = Annotated[
    dict[str, str],
    BeforeValidator(lambda value: {str(n): n for n in value} if isinstance(value, list | tuple) else value),
]
"""Feature columns: a list of names, or `feature: column` to rename them."""


class DocumentColumns(Config):
    """Which columns of the catalogue are what; a column of the same name is found without being named."""

    doc_id: str = Field("doc_id", description="Column with the document's id.")
    title: str | None = Field(None, description="Column with the title.")
    text: Names | None = Field(None, description="Column with the text, or several to join.")
    image: str | None = Field(None, description="Column with the path or address of an image.")
    updated_at: str | None = Field(None, description="Column that says which of two rows of one id is newer.")


class CatalogueConfig(Config):
    """Where the documents are, and which columns are what."""

    path: Paths = Field(description="CSV, JSON lines or Parquet, each also .gz; a file, a glob, or a list.")
    kind: Kind | None = Field(None, description="csv, jsonl or parquet; null tells it by the file's name.")
    columns: DocumentColumns = Field(DocumentColumns(), description="Which columns are what.")
    features: Features = Field(
        default_factory=dict, description="Further columns for the towers: a list, or feature: column."
    )
    feature_types: dict[str, FeatureType] = Field(
        default_factory=dict, description="Types of features that must not be found by looking at the values."
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the columns of a CSV file.")
    list_separator: str = Field(
        "|", min_length=1, description="Between the elements of a list in a CSV file."
    )
    timezone: Zone = Field("UTC", description="Time zone of timestamps that state none.")


def read_catalogue(
    connection: BaseBackend, config: CatalogueConfig, name: str
) -> tuple[ir.Table, tuple[str, ...]]:
    """Read the catalogue: the documents of `RawTables`, and the names of the features.

    Raises:
        SchemaError: If a file or a column is missing.
    """
    files = describe(find_files(config.path), config.kind)
    relation = Relation(connection, name, files, delimiter=config.delimiter, separator=config.list_separator)
    relation.load(_wanted(config, relation.columns))
    documents = type_documents(
        connection,
        name,
        feature_types(connection, name, list(config.features), config.feature_types),
        config.timezone,
        config.list_separator,
    )
    return documents, tuple(config.features)


def _wanted(config: CatalogueConfig, available: Sequence[str]) -> dict[str, Wanted]:
    columns = config.columns
    wanted = {"doc_id": Wanted((columns.doc_id,), "id")}
    for name in ("title", "text", "image", "updated_at"):
        mapped = getattr(columns, name)
        names = (mapped,) if isinstance(mapped, str) else tuple(mapped or (name,))
        wanted[name] = Wanted(names, "text", required=mapped is not None)
    check_feature_names(config.features)
    for feature, column in config.features.items():
        wanted[feature] = Wanted((column,), "feature")
    described = any(wanted[name].required or name in available for name in ("title", "text", "image"))
    if not described and not config.features:
        raise MissingColumnError(
            f"{Path(config.path[0]).name}: no title, text or feature of a document; map under "
            f"documents.columns one of: {', '.join(available)}",
            available,
        )
    return wanted


def check_feature_names(names: Iterable[str]) -> None:
    """Refuse a feature that would hide another column.

    Raises:
        SchemaError: If a name is reserved, or there twice.
    """
    check_names(names, RESERVED, "feature", "rename it: features: {{my_{name}: {name}}}")


def feature_types(
    connection: BaseBackend, texts: str, features: Sequence[str], stated: Mapping[str, FeatureType]
) -> dict[str, FeatureType]:
    """Find the type of each feature: what is stated, else double or list where every value is one.

    Raises:
        ConfigError: If a type is stated for something that is no feature.
    """
    unknown = sorted(set(stated) - set(features))
    if unknown:
        raise ConfigError(
            f"documents.feature_types: {unknown[0]!r} is none of the features: {', '.join(features)}"
        )
    types: dict[str, FeatureType] = {}
    for feature in features:
        query = (
            f"SELECT DISTINCT {identifier(feature)}.kind FROM {texts} WHERE {identifier(feature)} IS NOT NULL"
        )
        kinds = {row[0] for row in connection.raw_sql(query).fetchall()}
        found: FeatureType = "double" if kinds == {"number"} else "list" if kinds == {"list"} else "string"
        types[feature] = stated.get(feature, found)
    return types


def type_documents(
    connection: BaseBackend, texts: str, types: Mapping[str, FeatureType], zone: str, separator: str
) -> ir.Table:
    """Turn a table of texts into documents with types, and name the first fault of each row.

    Args:
        connection: DuckDB.
        texts: A table with `part, source, row`, the columns of `DOCUMENTS` as text, and features as structs.
        types: The features, with the type of each.
        zone: Time zone of timestamps that state none.
        separator: Between the elements of a list that is not JSON.
    """
    values = {
        feature: _VALUES[kind].format(text=f"{identifier(feature)}.text", separator=literal(separator))
        for feature, kind in types.items()
    }
    bad = [f"({identifier(f)}.text IS NOT NULL AND {value} IS NULL)" for f, value in values.items()]
    empty = " AND ".join(f"{identifier(name)} IS NULL" for name in ("title", "text", "image", *types))
    reason = f"""CASE
        WHEN doc_id IS NULL THEN '{Refusal.MISSING_ID}'
        WHEN updated_at IS NOT NULL AND tt_time(updated_at, {literal(zone)}) IS NULL
          THEN '{Refusal.UNREADABLE_TIMESTAMP}'
        WHEN {" OR ".join(bad) or "false"} THEN '{Refusal.INVALID_VALUE}'
        WHEN {empty} THEN '{Refusal.EMPTY_DOCUMENT}' END"""
    details = "".join(f" WHEN {b} THEN {literal(f)}" for f, b in zip(values, bad, strict=True))
    texts_only = [*DOCUMENTS.names, *(f"{identifier(feature)}.text" for feature in types)]
    raw = ", ".join(
        f"{literal(name)}: {text}" for name, text in zip((*DOCUMENTS.names, *types), texts_only, strict=True)
    )
    columns = "".join(f", {value} AS {identifier(feature)}" for feature, value in values.items())
    view = f"{texts}_typed"
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP VIEW {view} AS
        SELECT *, CASE WHEN reason IS NOT NULL THEN untyped END AS raw FROM (
          SELECT part, source, row, doc_id, coalesce(title, '') AS title, coalesce(text, '') AS text, image,
            tt_time(updated_at, {literal(zone)}) AS updated_at{columns}, {reason} AS reason,
            CASE WHEN doc_id IS NULL THEN 'no doc_id'{details} END AS detail,
            CAST(to_json({{{raw}}}) AS VARCHAR) AS untyped
          FROM {texts})
    """)
    return connection.table(view).drop("untyped")


_VALUES: Final[dict[FeatureType, str]] = {
    "string": "{text}",
    "double": "tt_number({text})",
    "list": "tt_text_list({text}, {separator})",
}
