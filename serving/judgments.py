"""What people say about results: grades of documents for queries, as TREC qrels that `evaluate` reads.

    judgments/judgments.qrels          `query 0 document grade` lines
    judgments/judgments.queries.tsv    each query's id and its text, normalised

A query's id is made from its normalised text, so the same text is the same query. A later grade replaces an
earlier one of the same pair. Both files are replaced by one rename each, texts first, so a reader never meets
a part of a line or a query without its text.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.errors import ArtifactError
from features.text import normalise

FOLDER = "judgments"
QRELS = "judgments.qrels"
QUERIES = "judgments.queries.tsv"
GRADES = (0, 3)
"""Smallest and largest grade: not relevant to perfect."""


@dataclass(frozen=True)
class Judgment:
    """A document's grade for a query, from 0 (not relevant) to 3 (perfect)."""

    doc_id: str
    grade: int


def query_id_of(text: str) -> str:
    """Return the id of a query text: 16 hexadecimal digits of the SHA-256 of its normalised form."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


class Judgments:
    """The judgments of one store. Many threads and processes may write.

    Args:
        store: The store's folder.
    """

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER

    @property
    def path(self) -> Path:
        """The qrels file."""
        return self.folder / QRELS

    def judge(self, query: str, doc_id: str, grade: int) -> int:
        """Keep a grade on disk before returning.

        Args:
            query: The text, with at least one visible character.
            doc_id: The document; no line break or tab, no blank at either end.
            grade: From 0 to 3.

        Returns:
            How many pairs are judged now.

        Raises:
            ValueError: If an argument is not as said.
            ArtifactError: If the files cannot be read or written.
        """
        text = normalise(query)
        if not text:
            raise ValueError("the query has no visible character")
        if doc_id != doc_id.strip() or not doc_id or doc_id.splitlines() != [doc_id] or "\t" in doc_id:
            raise ValueError(f"the id {doc_id!r} does not fit on a line of judgments")
        if not GRADES[0] <= grade <= GRADES[1]:
            raise ValueError(f"grade = {grade}; it must be from {GRADES[0]} to {GRADES[1]}")
        key = query_id_of(text)
        with self._locked():
            texts, grades = self._texts(), self._grades()
            if texts.get(key) != text:
                self._replace(QUERIES, "".join(f"{a}\t{b}\n" for a, b in {**texts, key: text}.items()))
            grades.pop((key, doc_id), None)  # the latest stands last
            grades[(key, doc_id)] = grade
            lines = (f"{one} 0 {document} {value}\n" for (one, document), value in grades.items())
            self._replace(QRELS, "".join(lines))
            return len(grades)

    def of_query(self, query: str) -> list[Judgment]:
        """Return the grades of a query, the latest last.

        Raises:
            ArtifactError: If the files cannot be read.
        """
        key = query_id_of(query)
        return [Judgment(doc_id, grade) for (one, doc_id), grade in self._grades().items() if one == key]

    def count(self) -> int:
        """Return how many pairs are judged.

        Raises:
            ArtifactError: If the files cannot be read.
        """
        return len(self._grades())

    def _grades(self) -> dict[tuple[str, str], int]:
        grades = {}
        for number, line in enumerate(self._lines(QRELS), 1):
            try:
                key, _, rest = line.split(" ", 2)
                doc_id, grade = rest.rsplit(" ", 1)
                grades[(key, doc_id)] = int(grade)
            except ValueError:
                raise ArtifactError(f"{self.path}: line {number} is not `query 0 document grade`") from None
        return grades

    def _texts(self) -> dict[str, str]:
        return {key: text for key, _, text in (line.partition("\t") for line in self._lines(QUERIES))}

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.folder / name} cannot be read: {error}") from None

    def _replace(self, name: str, text: str) -> None:
        staging = self.folder / f".{name}.{uuid.uuid4().hex}"
        try:
            with open(staging, "w", encoding="utf-8", newline="\n", opener=_private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(self.folder / name)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ArtifactError(f"{self.folder / name} cannot be written: {error.strerror}") from None
        finally:
            staging.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(exist_ok=True)  # without parents: a store that was removed stays so
            file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written: {error.strerror}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, since people typed what is in it."""
    return os.open(path, flags, 0o600)
