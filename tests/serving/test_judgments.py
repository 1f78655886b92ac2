import threading
from pathlib import Path

import pytest

from features.errors import ArtifactError
from features.qrels import QrelsConfig, read_qrels
from serving.judgments import Judgment, Judgments, query_id_of


def kept(judgments: Judgments) -> list[tuple[str, str, float]]:
    """What evaluation reads."""
    frame = read_qrels(QrelsConfig(path=judgments.path))
    return list(frame[["query_text", "doc_id", "relevance"]].itertuples(index=False, name=None))


def test_judgments_are_read_by_evaluation_and_a_later_grade_replaces_an_earlier(tmp_path: Path):
    judgments = Judgments(tmp_path)
    judgments.judge("Red  SHOES", "d1", 3)
    judgments.judge("茶壶", "shelf/9 ü", 2)
    judgments.judge("red shoes", "d2", 1)
    assert judgments.judge("red shoes", "d1", 0) == 3
    assert judgments.of_query("RED shoes") == [Judgment("d2", 1), Judgment("d1", 0)]
    assert sorted(kept(judgments)) == [
        ("red shoes", "d1", 0.0),
        ("red shoes", "d2", 1.0),
        ("茶壶", "shelf/9 ü", 2.0),
    ]
    assert {path.stat().st_mode & 0o777 for path in judgments.folder.glob("judgments.*")} == {0o600}
    key = query_id_of("red shoes")
    assert judgments.path.read_text(encoding="utf-8").splitlines()[-1] == f"{key} 0 d1 0"


def test_many_writers_lose_no_judgment(tmp_path: Path):
    def judge(writer: int) -> None:
        for number in range(8):
            Judgments(tmp_path).judge(f"query {writer}", f"d{number}", number % 4)

    threads = [threading.Thread(target=judge, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Judgments(tmp_path).count() == 48
    assert len(kept(Judgments(tmp_path))) == 48
    assert [path.name for path in (tmp_path / "judgments").iterdir() if path.name[0] == "."] == [".lock"]


@pytest.mark.parametrize(
    ("query", "doc_id", "grade", "hint"),
    [
        (" \u200b", "d1", 1, "no visible character"),
        ("a", "d1\nq 0 d2 3", 1, "does not fit on a line"),
        ("a", "d1\tx", 1, "does not fit on a line"),
        ("a", " d1", 1, "does not fit on a line"),
        ("a", "d1\u2028x", 1, "does not fit on a line"),
        ("a", "", 1, "does not fit on a line"),
        ("a", "d1", 4, "from 0 to 3"),
        ("a", "d1", -1, "from 0 to 3"),
    ],
)
def test_what_would_damage_the_file_is_refused(tmp_path: Path, query, doc_id, grade, hint):
    with pytest.raises(ValueError, match=hint):
        Judgments(tmp_path).judge(query, doc_id, grade)
    assert not Judgments(tmp_path).path.exists()


def test_a_damaged_file_is_said_and_not_written_over(tmp_path: Path):
    judgments = Judgments(tmp_path)
    judgments.judge("a", "d1", 1)
    judgments.path.write_text("q1 0 d1\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="line 1 is not"):
        judgments.judge("a", "d1", 2)
    assert judgments.path.read_text(encoding="utf-8") == "q1 0 d1\n"


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "judgments").write_text("a file", encoding="utf-8")
    with pytest.raises(ArtifactError, match="cannot be written"):
        Judgments(tmp_path).judge("a", "d1", 1)


def test_a_store_that_was_removed_is_not_made_anew(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be written: No such file or directory"):
        Judgments(tmp_path / "removed").judge("red shoes", "d01", 2)
    assert list(tmp_path.iterdir()) == []
