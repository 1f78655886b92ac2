import numpy as np
import pandas as pd
import pytest
import torch

from towers.baselines import SYSTEMS, Bm25, Counter, RandomScores, Towers, build_system
from towers.two_tower import TowersConfig, build_two_tower

TITLES = ["red shoe", "blue shoe", "red hat", "green tea"]


def documents() -> pd.DataFrame:
    count = len(TITLES)
    return pd.DataFrame(
        {
            "doc_id": [f"d{n}" for n in range(count)],
            "title": TITLES,
            "text": ["", "for runners", "", "from japan"],
            "clicks": [5, 1, 0, 9],
            "ctr": [0.2, 0.5, 0.1, 0.3],
        }
    )


def queries(texts: list[str | None], histories: list[list[str]] | None = None) -> pd.DataFrame:
    count = len(texts)
    return pd.DataFrame(
        {
            "query_id": [f"q{n}" for n in range(count)],
            "query_text": texts,
            "history": histories or [[] for _ in texts],
            "user_id": [None] * count,
        }
    )


def test_random_scores_are_a_function_of_seed_query_and_document_alone():
    doc_ids = [f"d{n}" for n in range(40)]
    frame = queries(["a"] * 7)
    score = RandomScores(doc_ids, 3).score(frame)
    assert score.dtype == np.float32
    assert score.shape == (7, 40)
    assert np.array_equal(RandomScores(doc_ids[::-1], 3).score(frame.iloc[::-1]), score[::-1, ::-1])
    assert not np.array_equal(RandomScores(doc_ids, 4).score(frame), score)


def test_random_scores_are_uniform_and_unrelated_between_queries_and_documents():
    score = RandomScores([f"d{n}" for n in range(500)], 0).score(queries(["a"] * 400))
    assert score.min() >= 0
    assert score.max() < 1
    assert score.mean() == pytest.approx(0.5, abs=0.005)
    assert score.std() == pytest.approx(np.sqrt(1 / 12), abs=0.005)
    assert np.abs(np.corrcoef(score)[np.triu_indices(400, 1)]).mean() < 0.05
    assert np.abs(np.corrcoef(score.T)[np.triu_indices(500, 1)]).mean() < 0.05


def test_a_document_is_not_random_in_the_way_of_the_query_of_the_same_name():
    names = ["a", "b"]
    frame = queries(["x", "x"]).assign(query_id=names)
    score = RandomScores(names, 0).score(frame)
    assert score[0, 0] != score[1, 1]


def test_popularity_and_ctr_score_by_their_column_whatever_the_query(tmp_path):
    for name, column in (("popularity", "clicks"), ("ctr", "ctr")):
        system = build_system(name, documents(), tmp_path, 0)
        assert isinstance(system, Counter)
        assert system.name == name
        expected = documents()[column].astype(np.float32).tolist()
        assert system.score(queries(["red", "shoe"])).tolist() == [expected, expected]


def test_bm25_ranks_by_the_words_of_title_and_text():
    score = Bm25(documents()).score(queries(["red shoe", "runners", "nothing"]))
    assert score[0].argmax() == 0
    assert score[1].argmax() == 1
    assert score[2].tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_bm25_reads_the_titles_of_the_history_where_there_is_no_text(missing):
    frame = queries([missing, missing, missing], [["d2", "gone"], ["d3"], []])
    score = Bm25(documents()).score(frame)
    as_text = Bm25(documents()).score(queries(["red hat", "green tea", ""]))
    assert np.array_equal(score, as_text)
    assert score[0].argmax() == 2


def test_towers_score_what_the_saved_model_scores(tmp_path):
    torch.manual_seed(0)
    frame = queries(["red shoe", "green tea", "hat"])
    config = TowersConfig(dimension=8)
    model = build_two_tower(config, documents(), frame)
    model.save(tmp_path / "two_tower")
    system = build_system("towers", documents(), tmp_path / "two_tower", 0)
    score = system.score(frame)
    with torch.inference_mode():
        model.eval()
        query = model.encode_queries(model.prepare_queries(frame))
        document = model.encode_documents(model.prepare_documents(documents()))
        expected = (query @ document.T).numpy()
    assert score.dtype == np.float32
    np.testing.assert_allclose(score, expected, atol=1e-6)


def test_encoding_in_blocks_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    frame = queries(["red shoe", "green tea", "hat"])
    model = build_two_tower(TowersConfig(dimension=8), documents(), frame)
    whole = Towers(model, documents()).score(frame)
    monkeypatch.setattr("towers.baselines._ENCODED_AT_ONCE", 2)
    np.testing.assert_allclose(Towers(model, documents()).score(frame), whole, atol=1e-6)


def test_every_named_system_can_be_built(tmp_path):
    torch.manual_seed(0)
    frame = queries(["red shoe"])
    build_two_tower(TowersConfig(dimension=8), documents(), frame).save(tmp_path)
    for name in SYSTEMS:
        system = build_system(name, documents(), tmp_path, 0)
        assert system.name == name
        assert system.score(frame).shape == (1, 4)
