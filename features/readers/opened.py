"""One file of a source, opened: its column names are known, and how DuckDB reads its rows and values."""

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from ibis.backends import BaseBackend

from features.errors import SchemaError
from features.readers.files import SourceFile, csv_header
from features.readers.values import identifier, literal
from features.tables import Refusal

RAW_LIMIT: Final = 10_000
"""Characters of a refused row that are kept."""

As = Literal["text", "id", "list", "feature"]
"""How a value is read; see `features.readers.relations.Wanted`."""


class Opened(Protocol):
    """A file whose column names are known."""

    columns: list[str]

    def rows(self, used: Sequence[str]) -> str:
        """Return what to select from: rows with a column `row` and whatever `value` refers to."""

    def value(self, column: str, used: Sequence[str], read_as: As) -> str:
        """Return the expression of one value."""

    def refuse(self, refused: str) -> None:
        """Insert into this table what turned out, while reading, not to be a row."""


def open_file(connection: BaseBackend, name: str, file: SourceFile, delimiter: str, separator: str) -> Opened:
    """Open a file of the relation `name`; one of JSON lines has been loaded by `load_json_lines`.

    Args:
        connection: DuckDB, with the macros of `features.readers.values`.
        name: Of the relation.
        file: Which.
        delimiter: Between the columns of a CSV file.
        separator: Between the elements of a list in a CSV file that is not JSON.

    Raises:
        SchemaError: If its columns cannot be read.
    """
    if file.kind == "csv":
        return _Csv(connection, name, file, delimiter, separator)
    if file.kind == "jsonl":
        return _JsonLines(connection, name, file, separator)
    return _Parquet(connection, file, separator)


def refuse_rejects(
    connection: BaseBackend, name: str, file: SourceFile, reason: Refusal, header: int
) -> None:
    """Quarantine what DuckDB's reader rejected: too few columns, an open quote, no UTF-8, too long a line."""
    connection.raw_sql(
        f"INSERT INTO {name}_refused SELECT {literal(file.name)}, line - {header}, '{reason}', "
        f"lower(any_value(error_type::VARCHAR)), any_value(left(trim(csv_line, chr(10)), {RAW_LIMIT})) "
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
        refuse_rejects(self._connection, self._name, self._file, Refusal.INVALID_VALUE, 1)


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
