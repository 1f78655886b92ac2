"""The files of a source: found, named, and proven whole before anything is read from them."""

import csv
import glob
import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Annotated, Literal, NamedTuple, cast

from pydantic import BeforeValidator, Field

from features.artifact import sha256_of_file
from features.errors import SchemaError

_CHUNK = 1 << 20

Paths = Annotated[
    list[Path],
    BeforeValidator(lambda value: [value] if isinstance(value, str | Path) else value),
    Field(min_length=1),
]
"""One path, or several; `*`, `?` and `[…]` match file names, `**` matches folders."""

Kind = Literal["csv", "jsonl", "parquet"]
_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class SourceFile(NamedTuple):
    """One file of a source; `part` numbers them in reading order, `name` tells them apart."""

    part: int
    path: Path
    name: str
    kind: Kind

    @property
    def zipped(self) -> bool:
        """Whether it is gzip."""
        return self.path.suffix == ".gz"


def find_files(patterns: Sequence[Path]) -> list[Path]:
    """Return the files that the patterns name, each once, in name order within a pattern.

    Raises:
        SchemaError: If a pattern names no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        # `Path.glob` does not take an absolute pattern.
        matches = [str(pattern)] if pattern.is_file() else glob.glob(str(pattern), recursive=True)  # noqa: PTH207
        files = sorted(Path(match) for match in matches if Path(match).is_file())
        if not files:
            if pattern.is_dir():
                raise SchemaError(f"{pattern} is a folder; name its files, such as {pattern / '*.parquet'}")
            raise SchemaError(f"{pattern} does not exist or names no file; correct the path")
        found.update(dict.fromkeys(files))
    return list(found)


def describe(paths: Sequence[Path], kind: Kind | None = None) -> list[SourceFile]:
    """Number and name files, and tell their kind by the ending of their name unless it is given."""
    names = file_names(paths)
    return [
        SourceFile(part, path, name, kind or _kind_of(path))
        for part, (path, name) in enumerate(zip(paths, names, strict=True))
    ]


def file_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest names under one common folder that tell the files apart."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    folders = [path.parent for path in resolved]
    while len(set(names)) < len(set(resolved)):
        names = [f"{folder.name}/{name}" for folder, name in zip(folders, names, strict=True)]
        folders = [folder.parent for folder in folders]
    return names


def _kind_of(path: Path) -> Kind:
    name = path.with_suffix("") if path.suffix == ".gz" else path
    kind = _KINDS.get(name.suffix.lower())
    if kind is None:
        raise SchemaError(
            f"{path.name}: unknown kind of file; names end in {', '.join(_KINDS)}, each also .gz"
        )
    return kind


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file's bytes by its name, after reading each to its end.

    DuckDB stops quietly where a gzip stream was cut off; this does not.

    Raises:
        SchemaError: If a `.gz` file is cut off or damaged.
    """
    files = list(paths)
    return {name: _digest(path) for name, path in zip(file_names(files), files, strict=True)}


def _digest(path: Path) -> str:
    if path.suffix == ".gz":
        try:
            with gzip.open(path, "rb") as unzipped:
                while unzipped.read(_CHUNK):
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SchemaError(
                f"{path.name} is cut off or no gzip file ({error}); get the whole file again"
            ) from None
    return sha256_of_file(path)


def csv_header(file: SourceFile, delimiter: str) -> list[str]:
    """Return the column names in the first row of a CSV file.

    Raises:
        SchemaError: If the file is empty or its first row is no header.
    """
    with gzip.open(file.path, "rb") if file.zipped else file.path.open("rb") as raw:
        # The wrapper decodes ahead; a bad byte in a later row is for the quarantine.
        text = io.TextIOWrapper(cast(IO[bytes], raw), encoding="utf-8-sig", errors="replace", newline="")
        try:
            header = next(csv.reader(text, delimiter=delimiter), None)
        except csv.Error as error:
            raise SchemaError(f"{file.name}: the first row is no CSV header ({error})") from None
    if any(character < " " and not character.isspace() for name in header or () for character in name):
        raise SchemaError(f"{file.name} is no text: its first row has no column names; export it as CSV")
    if not header:
        raise SchemaError(f"{file.name} is empty; a CSV file starts with a row of column names")
    return header
