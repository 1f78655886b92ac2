import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError, SchemaError
from features.qrels import QRELS, QrelsConfig, read_qrels, write_qrels_parquet

Rows = list[tuple[str, str, str, float]]


def rows(judged: pd.DataFrame) -> Rows:
    return list(judged.itertuples(index=False, name=None))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


JUDGMENTS = {
    "judgmentRatings": [
        {"query": "tea", "ratings": [{"docId": "b", "rating": "100.000"}, {"docId": "a", "rating": "0.000"}]},
        {"query": "茶", "ratings": [{"docId": "a", "rating": 10}]},
    ]
}


def test_a_judgement_list_keeps_its_grades_unless_gains_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "judged.json", json.dumps(JUDGMENTS))
    assert rows(read_qrels(QrelsConfig(path=path))) == [
        ("tea", "tea", "a", 0.0),
        ("tea", "tea", "b", 100.0),
        ("茶", "茶", "a", 10.0),
    ]
    gains = {100.0: 2.0, 10.0: 1.0, 0.0: 0.0}
    assert [row[3] for row in rows(read_qrels(QrelsConfig(path=path, gains=gains)))] == [0.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match=r"no gain for the grade 10 of judged.json"):
        read_qrels(QrelsConfig(path=path, gains={100.0: 1.0, 0.0: 0.0}))


def test_trec_lines_take_their_texts_from_a_second_file(tmp_path: Path) -> None:
    path = write(tmp_path / "judged.txt", "q1 0 d1 2\nq1\t0\td2\t0\n\nq2 0 d1 1\n")
    queries = write(tmp_path / "queries.tsv", "q1\tgreen tea\nq2\tblack tea\nq3\tunjudged\n")
    assert rows(read_qrels(QrelsConfig(path=path, queries=queries))) == [
        ("q1", "green tea", "d1", 2.0),
        ("q1", "green tea", "d2", 0.0),
        ("q2", "black tea", "d1", 1.0),
    ]
    with pytest.raises(ConfigError, match=r"qrels.queries is missing"):
        read_qrels(QrelsConfig(path=path))
    with pytest.raises(SchemaError, match="no text for the query 'q2'"):
        read_qrels(QrelsConfig(path=path, queries=write(tmp_path / "few.tsv", "q1\ttea\n")))


def test_texts_beside_trec_lines_are_found_by_their_name_and_an_id_may_hold_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "judgments.qrels", "q1 0 shelf/9 ü 2\nq1 0 d2 0\n")
    assert QrelsConfig(path=path).files() == [path]
    texts = write(tmp_path / "judgments.queries.tsv", "q1\tgreen tea\n")
    assert QrelsConfig(path=path).files() == [path, texts]
    assert rows(read_qrels(QrelsConfig(path=path))) == [
        ("q1", "green tea", "d2", 0.0),
        ("q1", "green tea", "shelf/9 ü", 2.0),
    ]
    with pytest.raises(SchemaError, match="is not `query 0 document grade`"):
        read_qrels(QrelsConfig(path=write(tmp_path / "judgments.qrels", "q1 0 2\n")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("judged.csv", "query_text,doc_id,relevance\ntea,12.0,2\ntea,7,1\n"),
        ("judged.tsv", "query_text\tdoc_id\trelevance\ntea\t12\t2\ntea\t7\t1\n"),
        (
            "judged.jsonl",
            '{"query_text": "tea", "doc_id": 12.0, "relevance": 2}\n'
            '{"query_text": "tea", "doc_id": "7", "relevance": "1"}',
        ),
    ],
)
def test_a_table_of_judgements_is_read_with_ids_as_the_catalogue_has_them(
    tmp_path: Path, name: str, text: str
) -> None:
    path = write(tmp_path / name, text)
    assert rows(read_qrels(QrelsConfig(path=path))) == [("tea", "tea", "12", 2.0), ("tea", "tea", "7", 1.0)]


def test_numbers_in_a_judgement_list_are_ids_and_anything_else_is_refused(tmp_path: Path) -> None:
    def judged(query: object, doc: object) -> Path:
        entry = {"query": query, "ratings": [{"docId": doc, "rating": "1"}]}
        return write(tmp_path / "judged.json", json.dumps({"judgmentRatings": [entry]}))

    found = read_qrels(QrelsConfig(path=judged(501, 12)))
    assert found.loc[0, ["query_id", "query_text", "doc_id"]].tolist() == ["501", "501", "12"]
    write_qrels_parquet(found, tmp_path / "judged.parquet")
    with pytest.raises(SchemaError, match="neither text nor a whole number"):
        read_qrels(QrelsConfig(path=judged("tea", ["12"])))
    with pytest.raises(SchemaError, match="judgement 1 has no doc_id"):
        read_qrels(QrelsConfig(path=judged("tea", None)))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    judged = read_qrels(QrelsConfig(path=write(tmp_path / "judged.json", json.dumps(JUDGMENTS))))
    write_qrels_parquet(judged, tmp_path / "judged.parquet")
    assert pq.read_schema(tmp_path / "judged.parquet").remove_metadata().equals(QRELS)
    assert rows(read_qrels(QrelsConfig(path=tmp_path / "judged.parquet"))) == rows(judged)


def test_of_two_judgements_of_a_pair_the_higher_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "judged.csv", "query_text,doc_id,relevance\ntea,a,1\ntea,a,3\ntea,a,2\n")
    assert rows(read_qrels(QrelsConfig(path=path))) == [("tea", "tea", "a", 3.0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("judged.csv", "query_text,doc_id,relevance\ntea,a,good\n", "judgement 1 has the grade 'good'"),
        ("judged.csv", "query_text,doc_id,relevance\ntea,,1\n", "judgement 1 has no doc_id"),
        ("judged.csv", "query_text,doc_id,relevance\ntea\n", "row 1 cannot be read"),
        ("judged.csv", "query_text,doc_id,relevance\n", "is empty"),
        ("judged.csv", "query,doc_id,relevance\n", "no column 'query_text'.*query, doc_id, relevance"),
        ("judged.json", "{", "no JSON document"),
        ("judged.json", "{}", "no judgement list"),
        ("judged.txt", "q1 d1 2\n", "is not `query 0 document grade`"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_one_line_error(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    queries: dict[str, Any] = (
        {"queries": write(tmp_path / "q.tsv", "q1\ttea\n")} if name.endswith("txt") else {}
    )
    with pytest.raises(SchemaError, match=message) as error:
        read_qrels(QrelsConfig(path=write(tmp_path / name, text), **queries))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_one_that_is_cut_off_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="does not exist"):
        read_qrels(QrelsConfig(path=tmp_path / "absent.json"))
    path = tmp_path / "judged.json.gz"
    path.write_bytes(gzip.compress(json.dumps(JUDGMENTS).encode())[:-9])
    with pytest.raises(SchemaError, match="cut off"):
        read_qrels(QrelsConfig(path=path))


def test_the_judged_shopping_queries_import(shared_data: Path) -> None:
    judged = read_qrels(QrelsConfig(path=shared_data / "esci-ubi" / "esci_us_judgments.json.gz"))
    assert (len(judged), judged["query_id"].nunique()) == (6_678, 150)
    assert set(judged["relevance"]) == {0.0, 1.0, 10.0, 100.0}
