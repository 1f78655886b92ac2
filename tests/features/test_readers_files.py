import gzip
import hashlib
from pathlib import Path

import pytest

from features.errors import SchemaError
from features.readers.files import describe, digests, file_names, find_files


def test_a_glob_a_list_and_a_name_with_brackets_are_found(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c[1].csv"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find_files([tmp_path / "*.csv"])] == ["a.csv", "b.csv", "c[1].csv"]
    both = find_files([tmp_path / "b.csv", tmp_path / "*.csv"])
    assert [path.name for path in both] == ["b.csv", "a.csv", "c[1].csv"]
    assert [path.name for path in find_files([tmp_path / "c[1].csv"])] == ["c[1].csv"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"absent\.csv does not exist"):
        find_files([tmp_path / "absent.csv"])


def test_names_are_as_short_as_tells_the_files_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "mon" / "log.csv", tmp_path / "tue" / "log.csv"]
    assert file_names(paths) == ["mon/log.csv", "tue/log.csv"]
    assert file_names(paths[:1]) == ["log.csv"]


def test_digests_are_of_the_bytes_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")
    assert digests([tmp_path / "a.csv"]) == {"a.csv": hashlib.sha256(b"x").hexdigest()}


@pytest.mark.parametrize("cut", [1, 9, 200])
def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(b"".join(b"line %d\n" % n for n in range(1000)))
    (tmp_path / "log.csv.gz").write_bytes(whole[:-cut])
    with pytest.raises(SchemaError, match=r"log.csv.gz is cut off"):
        digests([tmp_path / "log.csv.gz"])


def test_several_gzip_members_are_one_whole_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    members = gzip.compress(b"a" * 1000) + gzip.compress(b"b" * 1000)
    (tmp_path / "log.csv.gz").write_bytes(members)
    digests([tmp_path / "log.csv.gz"])
    damaged = bytearray(members)
    damaged[-6] ^= 1
    (tmp_path / "log.csv.gz").write_bytes(damaged)
    with pytest.raises(SchemaError, match="cut off or no gzip"):
        digests([tmp_path / "log.csv.gz"])


def test_the_kind_is_told_by_the_name_or_stated(tmp_path: Path) -> None:
    kinds = [file.kind for file in describe([Path("a.tsv"), Path("b.ndjson.gz"), Path("c.parquet")])]
    assert kinds == ["csv", "jsonl", "parquet"]
    assert describe([Path("log.txt")], "csv")[0].kind == "csv"
    with pytest.raises(SchemaError, match=r"log.txt: unknown kind"):
        describe([Path("log.txt")])
