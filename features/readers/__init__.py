"""Readers of outside formats: one configuration and one module a format, two tables from each."""

from typing import Annotated

from ibis.backends import BaseBackend
from pydantic import Field

from features.errors import ConfigError
from features.readers.catalogue import CatalogueConfig, DocumentColumns
from features.readers.columnar import ColumnarSource, LogColumns, read_columnar
from features.readers.files import digests
from features.readers.metarank import MetarankSource, read_metarank
from features.readers.raw import RawTables
from features.readers.tables import TablesSource, read_tables
from features.readers.ubi import UbiSource, read_ubi
from features.readers.values import define_macros

__all__ = [
    "CatalogueConfig",
    "ColumnarSource",
    "DocumentColumns",
    "LogColumns",
    "MetarankSource",
    "RawTables",
    "SourceConfig",
    "TablesSource",
    "UbiSource",
    "digests",
    "read",
]

SourceConfig = Annotated[
    ColumnarSource | MetarankSource | UbiSource | TablesSource, Field(discriminator="format")
]
"""Which logs and catalogue to read, and how; `format` says which of the four it is."""


def read(
    source: ColumnarSource | MetarankSource | UbiSource | TablesSource, connection: BaseBackend
) -> RawTables:
    """Read a source into the two tables, not yet checked against each other.

    Raises:
        SchemaError: If a file or a column is missing, or a file is not what its name says.
        ConfigError: If this format cannot be read on this engine.
    """
    if isinstance(source, TablesSource):
        return read_tables(connection, source)
    if connection.name != "duckdb":
        raise ConfigError(
            f"engine.kind: only duckdb reads format: {source.format}; {connection.name} reads format: tables"
        )
    define_macros(connection)
    if isinstance(source, MetarankSource):
        return read_metarank(connection, source)
    if isinstance(source, UbiSource):
        return read_ubi(connection, source)
    return read_columnar(connection, source)
