"""Files of any kind as one DuckDB table of text columns: CSV, JSON lines or Parquet, plain or gzip.

A relation has `part` (the file's number), `source` (its name), `row` (1-based) and the columns that were
asked for. What no row can be made of goes to the table `<name>_refused`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ibis.backends import BaseBackend

from features.errors import SchemaError
from features.readers.files import SourceFile
from features.readers.opened import RAW_LIMIT, As, Opened, open_file, refuse_rejects
from features.readers.values import identifier, literal
from features.tables import Refusal

_LONGEST_LINE: Final = 64 << 20  # bytes of a line of JSON

_SQL_TYPES: Final[dict[As, str]] = {
    "text": "VARCHAR",
    "id": "VARCHAR",
    "list": "VARCHAR[]",
    "feature": "STRUCT(kind VARCHAR, text VARCHAR)",
}


class MissingColumnError(SchemaError):
    """A file lacks a column that is needed.

    Attributes:
        columns: Those it has.
    """

    def __init__(self, message: str, columns: Sequence[str]) -> None:
        super().__init__(message)
        self.columns = list(columns)


@dataclass(frozen=True)
class Wanted:
    """A column to take from the files.

    Attributes:
        columns: Where to take it from; several are joined by line feeds (`text` only).
        read_as: `text`, `id` (text by the rule for ids), `list` (of ids), or `feature`: a struct of its
            `text` and its `kind`: number, list (its text is JSON) or text.
        required: Whether every file must have it; otherwise it is null where a file has not.
    """

    columns: tuple[str, ...]
    read_as: As = "text"
    required: bool = True


class Relation:
    """Files that belong together, opened: their column names are known, their rows not yet read."""

    def __init__(
        self,
        connection: BaseBackend,
        name: str,
        files: Sequence[SourceFile],
        *,
        delimiter: str,
        separator: str,
    ) -> None:
        """Open the files.

        Args:
            connection: DuckDB, with the macros of `features.readers.values`.
            name: Of the tables to create.
            files: At least one.
            delimiter: Between the columns of a CSV file.
            separator: Between the elements of a list in a CSV file that is not JSON.
        """
        self.name = name
        self._connection = connection
        self._files = files
        create_refused(connection, name)
        load_json_lines(connection, name, [file for file in files if file.kind == "jsonl"])
        self._opened = [open_file(connection, name, file, delimiter, separator) for file in files]
        self.columns: list[str] = list(dict.fromkeys(c for opened in self._opened for c in opened.columns))
        """Every column that some file has, in order of appearance."""
        if not self.columns:
            refused = connection.raw_sql(f"SELECT count(*) FROM {name}_refused").fetchone()[0]
            raise SchemaError(
                f"{files[0].name}: none of {refused} lines is an object of JSON; write one object a line"
                if refused
                else f"{files[0].name} is empty: no row that can be read; check `path` in the source"
            )

    def load(self, wanted: Mapping[str, Wanted]) -> None:
        """Read every row into the table `name`.

        Raises:
            MissingColumnError: If a file lacks a required column; the message lists those it has.
        """
        selects = [
            _select(file, opened, wanted) for file, opened in zip(self._files, self._opened, strict=True)
        ]
        self._connection.raw_sql(f"CREATE OR REPLACE TEMP TABLE {self.name} AS {' UNION ALL '.join(selects)}")
        for opened in self._opened:
            opened.refuse(f"{self.name}_refused")


def create_refused(connection: BaseBackend, name: str) -> None:
    """Create the empty table `<name>_refused`."""
    connection.raw_sql(
        f"CREATE OR REPLACE TEMP TABLE {name}_refused "
        "(source VARCHAR, row BIGINT, reason VARCHAR, detail VARCHAR, raw VARCHAR)"
    )


def load_json_lines(connection: BaseBackend, name: str, files: Sequence[SourceFile]) -> None:
    """Read objects of JSON into `<name>_lines` (part, source, row, line), other lines into `<name>_refused`.

    Every line counts in `row`; blank ones are no rows. An invalid line never stops the others.
    """
    connection.raw_sql(
        f"CREATE OR REPLACE TEMP TABLE {name}_lines (part INTEGER, source VARCHAR, row BIGINT, line JSON)"
    )
    for file in files:
        rejects = f"{name}_rejects_{file.part}"
        connection.raw_sql(
            f"CREATE OR REPLACE TEMP TABLE {name}_text AS SELECT row_number() OVER () AS row, line "
            f"FROM read_csv({literal(str(file.path))}, columns = {{'line': 'VARCHAR'}}, delim = chr(31), "
            f"quote = '', escape = '', header = false, auto_detect = false, strict_mode = false, "
            f"max_line_size = {_LONGEST_LINE}, store_rejects = true, rejects_limit = 0, "
            f"rejects_table = '{rejects}', rejects_scan = '{rejects}_scan')"
        )
        refuse_rejects(connection, name, file, Refusal.INVALID_JSON, 0)
        # CASE, as AND does not keep json_type from seeing what is no JSON.
        good = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END"
        source = literal(file.name)
        connection.raw_sql(
            f"INSERT INTO {name}_lines SELECT {file.part}, {source}, row, line::JSON "
            f"FROM {name}_text WHERE {good}"
        )
        connection.raw_sql(
            f"INSERT INTO {name}_refused SELECT {source}, row, '{Refusal.INVALID_JSON}', "
            f"'not an object of JSON', left(line, {RAW_LIMIT}) FROM {name}_text "
            f"WHERE NOT {good} AND trim(line) <> ''"
        )
        connection.raw_sql(f"DROP TABLE {name}_text")


def _select(file: SourceFile, opened: Opened, wanted: Mapping[str, Wanted]) -> str:
    available = set(opened.columns)
    used = list(dict.fromkeys(c for column in wanted.values() for c in column.columns if c in available))
    expressions = []
    for name, column in wanted.items():
        missing = [source for source in column.columns if source not in available]
        if missing and column.required:
            has = ", ".join(opened.columns) or "none"
            what = f" (for {name})" if name != missing[0] else ""
            raise MissingColumnError(
                f"{file.name} has no column {missing[0]!r}{what}; map {name} to one of: {has}"
                f"{other_delimiter(opened.columns)}",
                opened.columns,
            )
        values = [opened.value(c, used, column.read_as) for c in column.columns if c in available]
        joined = (
            f"nullif(concat_ws(chr(10), {', '.join(values)}), '')" if len(values) > 1 else "".join(values)
        )
        expressions.append(f"{joined or f'NULL::{_SQL_TYPES[column.read_as]}'} AS {identifier(name)}")
    columns = ", ".join([f"{file.part} AS part", f"{literal(file.name)} AS source", "row", *expressions])
    return f"SELECT {columns} FROM {opened.rows(used)}"


def other_delimiter(columns: Sequence[str]) -> str:
    """Return advice where the only column of a file seems to be several, else nothing."""
    found = next((mark for mark in ";\t|" if mark in columns[0]), None) if len(columns) == 1 else None
    if found is None:
        return ""
    return f"; or set its `delimiter` to {json.dumps(found)}, if that is what its columns are divided by"
