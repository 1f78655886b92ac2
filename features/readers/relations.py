"""Files of any kind as one DuckDB table of text columns: CSV, JSON lines or Parquet, plain or gzip.

A relation has `part` (the file's number), `source` (its name), `row` (1-based) and the columns that were
asked for. What no row can be made of goes to the table `<name>_refused`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ibis.backends import BaseBackend

from features.errors import SchemaError
from features.readers.files import SourceFile, csv_header
from features.readers.values import identifier, literal
from features.tables import Refusal

_RAW_LIMIT: Final = 10_000  # characters of a refused row that are kept
_LONGEST_LINE: Final = 64 << 20  # bytes of a line of JSON

As = Literal["text", "id", "list", "feature"]
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


class _Opened(Protocol):
    """A file whose column names are known."""

    columns: list[str]

    def rows(self, used: Sequence[str]) -> str:
        """Return what to select from: rows with a column `row` and whatever `value` refers to."""

    def value(self, column: str, used: Sequence[str], read_as: As) -> str:
        """Return the expression of one value."""

    def refuse(self, refused: str) -> None:
        """Insert into this table what turned out, while reading, not to be a row."""


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
        self._opened: list[_Opened] = []
        for file in files:
            if file.kind == "csv":
                self._opened.append(_Csv(connection, name, file, delimiter, separator))
            elif file.kind == "jsonl":
                self._opened.append(_JsonLines(connection, name, file, separator))
            else:
                self._opened.append(_Parquet(connection, file, separator))
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
        _refuse_rejects(connection, name, file, Refusal.INVALID_JSON, 0)
        # CASE, as AND does not keep json_type from seeing what is no JSON.
        good = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END"
        source = literal(file.name)
        connection.raw_sql(
            f"INSERT INTO {name}_lines SELECT {file.part}, {source}, row, line::JSON "
            f"FROM {name}_text WHERE {good}"
        )
        connection.raw_sql(
            f"INSERT INTO {name}_refused SELECT {source}, row, '{Refusal.INVALID_JSON}', "
            f"'not an object of JSON', left(line, {_RAW_LIMIT}) FROM {name}_text "
            f"WHERE NOT {good} AND trim(line) <> ''"
        )
        connection.raw_sql(f"DROP TABLE {name}_text")


def _select(file: SourceFile, opened: _Opened, wanted: Mapping[str, Wanted]) -> str:
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


def _refuse_rejects(
    connection: BaseBackend, name: str, file: SourceFile, reason: Refusal, header: int
) -> None:
    """Quarantine what DuckDB's reader rejected: too few columns, an open quote, no UTF-8, too long a line."""
    connection.raw_sql(
        f"INSERT INTO {name}_refused SELECT {literal(file.name)}, line - {header}, '{reason}', "
        f"lower(any_value(error_type::VARCHAR)), any_value(left(trim(csv_line, chr(10)), {_RAW_LIMIT})) "
        f"FROM {name}_rejects_{file.part} GROUP BY line"
    )


class _Csv:
    """CSV in UTF-8 with a header; quotes are `"`, doubled inside a quoted value. It has no types."""

    def __init__(
        self, connection: BaseBackend, name: str, file: SourceFile, delimiter: str, separator: str
    ) -> None:
        self.columns = csv_header(file, delimiter)
        self._connection = connection
        self._name = name
        self._file = file
        self._delimiter = delimiter
        self._separator = separator

    def rows(self, used: Sequence[str]) -> str:
        # Columns are named by number: DuckDB would take "Title" and "title" for one.
        columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(self.columns)))
        rejects = f"{self._name}_rejects_{self._file.part}"
        return (
            f"(SELECT row_number() OVER () AS row, * FROM read_csv({literal(str(self._file.path))}, "
            f"columns = {{{columns}}}, delim = {literal(self._delimiter)}, quote = '\"', escape = '\"', "
            f"header = true, auto_detect = false, store_rejects = true, rejects_limit = 0, "
            f"rejects_table = '{rejects}', rejects_scan = '{rejects}_scan'))"
        )

    def value(self, column: str, used: Sequence[str], read_as: As) -> str:
        if self.columns.count(column) > 1:
            raise SchemaError(f"{self._file.name} has two columns {column!r}; rename one of them")
        raw = f"c{self.columns.index(column)}"
        return {
            "text": f"tt_text({raw})",
            "id": f"tt_untyped_id({raw})",
            "list": f"tt_text_list(tt_text({raw}), {literal(self._separator)})",
            "feature": f"tt_feature(if(tt_number({raw}) IS NULL, 'text', 'number'), tt_text({raw}))",
        }[read_as]

    def refuse(self, refused: str) -> None:
        _refuse_rejects(self._connection, self._name, self._file, Refusal.INVALID_VALUE, 1)


class _JsonLines:
    """One JSON object a line."""

    def __init__(self, connection: BaseBackend, name: str, file: SourceFile, separator: str) -> None:
        lines = f"(SELECT line FROM {name}_lines WHERE part = {file.part})"
        keys = f"SELECT DISTINCT unnest(json_keys(line)) AS key FROM {lines} ORDER BY key"
        self.columns = [row[0] for row in connection.raw_sql(keys).fetchall()]
        self._name = name
        self._part = file.part
        self._separator = separator

    def rows(self, used: Sequence[str]) -> str:
        pointers = ", ".join(literal("/" + c.replace("~", "~0").replace("/", "~1")) for c in used)
        values = f"json_extract(line, [{pointers}])" if pointers else "NULL"
        return f"(SELECT row, {values} AS v FROM {self._name}_lines WHERE part = {self._part})"

    def value(self, column: str, used: Sequence[str], read_as: As) -> str:
        raw = f"v[{used.index(column) + 1}]"
        return {
            "text": f"tt_text(tt_json_text({raw}))",
            "id": f"tt_json_id({raw})",
            "list": f"tt_json_or_text_list({raw}, {literal(self._separator)})",
            "feature": f"tt_feature(tt_json_kind({raw}), tt_text(tt_json_text({raw})))",
        }[read_as]

    def refuse(self, refused: str) -> None:
        """Nothing: the lines were read before."""


class _Parquet:
    """Parquet; its own types say what is a number and what is a list."""

    def __init__(self, connection: BaseBackend, file: SourceFile, separator: str) -> None:
        try:
            described = connection.raw_sql(f"DESCRIBE SELECT * FROM read_parquet({literal(str(file.path))})")
            self._types = {row[0]: str(row[1]) for row in described.fetchall()}
        except Exception as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise SchemaError(f"{file.name} is no readable Parquet file: {reason}") from error
        self.columns = list(self._types)
        self._path = file.path
        self._separator = separator

    def rows(self, used: Sequence[str]) -> str:
        # `file_row_number` is the reader's; a column of the file that is called `row` must not shadow it.
        columns = ", ".join(f"{identifier(c)} AS c{number}" for number, c in enumerate(used))
        return (
            f"(SELECT file_row_number + 1 AS row{', ' if columns else ''}{columns} "
            f"FROM read_parquet({literal(str(self._path))}, file_row_number = true))"
        )

    def value(self, column: str, used: Sequence[str], read_as: As) -> str:
        raw = f"c{used.index(column)}"
        kind = self._types[column]
        text = f"tt_text(CAST({raw} AS VARCHAR))"
        if kind.endswith("[]"):
            element = self._id("e", kind[:-2])
            items = f"list_transform({raw}, lambda e: {element})"
            as_json = f"CAST(to_json({items}) AS VARCHAR)"
            return {"list": items, "feature": f"tt_feature('list', {as_json})"}.get(read_as, as_json)
        number = _is_number(kind)
        return {
            "text": text,
            "id": self._id(raw, kind),
            "list": f"tt_text_list({text}, {literal(self._separator)})",
            "feature": f"tt_feature('{'number' if number else 'text'}', {text})",
        }[read_as]

    def refuse(self, refused: str) -> None:
        """Nothing: a Parquet file has only rows."""

    @staticmethod
    def _id(raw: str, kind: str) -> str:
        fraction = kind in ("DOUBLE", "FLOAT") or kind.startswith("DECIMAL")
        return f"tt_number_id(CAST({raw} AS DOUBLE))" if fraction else f"nullif(CAST({raw} AS VARCHAR), '')"


def _is_number(kind: str) -> bool:
    return kind.startswith("DECIMAL") or kind in {
        "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
        "UHUGEINT", "FLOAT", "DOUBLE",
    }  # fmt: skip
