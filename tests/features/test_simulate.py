from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.shop.clicks import ATTRACTION, ClickConfig
from features.shop.vocabulary import vocabulary
from features.simulate import SimulateConfig, simulate
from features.tables import IMPRESSIONS

CONFIG = SimulateConfig(sessions=30_000, documents=600, queries=400, judged_queries=500, unseen_queries=100)
TINY = SimulateConfig(sessions=50, documents=30, queries=20)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulate") / "shop", CONFIG).path


@pytest.fixture(scope="module")
def log(shop: Path) -> pd.DataFrame:
    return pd.read_parquet(shop / "impressions.parquet")


@pytest.fixture(scope="module")
def documents(shop: Path) -> pd.DataFrame:
    return pd.read_json(shop / "documents.jsonl.gz", lines=True, dtype={"doc_id": str}).set_index("doc_id")


@pytest.fixture(scope="module")
def qrels(shop: Path) -> pd.DataFrame:
    return pd.read_parquet(shop / "qrels.parquet")


@pytest.fixture(scope="module")
def document_truth(shop: Path) -> pd.DataFrame:
    return pd.read_parquet(shop / "truth" / "documents.parquet").set_index("doc_id")


@pytest.fixture(scope="module")
def query_truth(shop: Path) -> pd.DataFrame:
    return pd.read_parquet(shop / "truth" / "queries.parquet").set_index("query_text")


def examination_from_clicks(log: pd.DataFrame) -> np.ndarray:
    """Examination of each place over that of the first, by maximum likelihood of rate = place x pair."""
    shown = log.groupby(["query_text", "doc_id", "position"])["clicked"].agg(["sum", "size"]).reset_index()
    pair = shown.groupby(["query_text", "doc_id"]).ngroup().to_numpy()
    place = shown["position"].to_numpy() - 1
    clicks, views = shown["sum"].to_numpy(), shown["size"].to_numpy()
    examination = np.ones(place.max() + 1)
    for _ in range(100):
        attraction = np.bincount(pair, clicks) / np.bincount(pair, views * examination[place])
        examination = np.bincount(place, clicks) / np.bincount(place, views * attraction[pair])
        examination /= examination[0]
    return examination


def test_equal_configurations_give_equal_files(tmp_path: Path) -> None:
    first, second = simulate(tmp_path / "first", TINY), simulate(tmp_path / "second", TINY)
    assert first.digest == second.digest
    assert first.kind == "simulation"
    assert (first.path / "documents.jsonl.gz").read_bytes()[4:8] == bytes(4)  # gzip records no time


def test_another_seed_gives_another_shop(tmp_path: Path) -> None:
    first = simulate(tmp_path / "first", TINY)
    second = simulate(tmp_path / "second", TINY.model_copy(update={"seed": 1}))
    names = ["impressions.parquet", "documents.jsonl.gz", "qrels.parquet"]
    assert all(first.manifest["files"][name] != second.manifest["files"][name] for name in names)


def test_the_log_has_the_columns_of_impressions_in_order_of_time(shop: Path, log: pd.DataFrame) -> None:
    assert pq.read_schema(shop / "impressions.parquet").equals(IMPRESSIONS)
    assert log["timestamp"].is_monotonic_increasing
    assert log["timestamp"].min() >= datetime(2026, 3, 2, tzinfo=UTC)
    assert log["timestamp"].max() < datetime(2026, 4, 1, tzinfo=UTC)
    assert log["impression_id"].nunique() == CONFIG.sessions
    assert log.groupby("query_id")["query_text"].nunique().max() == 1


def test_each_list_shows_distinct_documents_of_the_catalogue_at_places_from_one(
    log: pd.DataFrame, documents: pd.DataFrame
) -> None:
    places = log["position"].to_numpy().reshape(CONFIG.sessions, CONFIG.results)
    assert (places == np.arange(1, CONFIG.results + 1)).all()
    assert not log.duplicated(["impression_id", "doc_id"]).any()
    assert log["doc_id"].isin(documents.index).all()
    assert len(documents) == CONFIG.documents


def test_only_clicks_have_a_dwell_time(log: pd.DataFrame) -> None:
    assert (log["dwell_ms"].notna() == log["clicked"]).all()
    assert (log["dwell_ms"].dropna() > 0).all()


def test_frequent_queries_follow_zipf(log: pd.DataFrame, query_truth: pd.DataFrame) -> None:
    asked = query_truth["asked"].sort_values(ascending=False)
    assert asked.sum() == CONFIG.sessions
    head = asked.iloc[: len(asked) // 100].sum() / asked.sum()
    assert 0.1 < head < 0.6
    assert (asked == 1).sum() > 100


def test_popular_documents_follow_zipf_and_are_shown_more(
    log: pd.DataFrame, document_truth: pd.DataFrame
) -> None:
    popularity = document_truth["popularity"].sort_values(ascending=False).to_numpy()
    slope = np.polyfit(np.log(np.arange(1, len(popularity) + 1)), np.log(popularity), 1)[0]
    assert slope == pytest.approx(-CONFIG.document_skew)
    shown = log["doc_id"].value_counts().reindex(document_truth.index, fill_value=0)
    warm = document_truth[~document_truth["cold"]]
    head = warm.nlargest(len(warm) // 10, "popularity").index
    assert shown[head].mean() > 1.3 * shown[warm.index].mean()


def test_position_bias_is_recovered_from_the_log(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"queries": 100, "clicks": ClickConfig(patience=0.8, satisfaction=0.0)})
    simulate(tmp_path / "shop", config)
    truth = pd.read_parquet(tmp_path / "shop" / "truth" / "positions.parquet")
    expected = 0.8 ** np.arange(CONFIG.results)
    assert truth["examination"].to_numpy() == pytest.approx(expected)
    recovered = examination_from_clicks(pd.read_parquet(tmp_path / "shop" / "impressions.parquet"))
    assert recovered[:8] == pytest.approx(expected[:8], rel=0.1)


def test_satisfaction_lowers_the_examination_below_patience(shop: Path) -> None:
    examination = pd.read_parquet(shop / "truth" / "positions.parquet")["examination"].to_numpy()
    assert examination[0] == 1.0
    assert (examination[1:] < CONFIG.clicks.patience ** np.arange(1, CONFIG.results)).all()
    assert (np.diff(examination) < 0).all()


def test_clicks_on_the_first_place_recover_noise_and_attraction(
    log: pd.DataFrame, qrels: pd.DataFrame
) -> None:
    first = log[(log["position"] == 1) & log["query_text"].isin(qrels["query_text"])]
    graded = first.merge(qrels, on=["query_text", "doc_id"], how="left").fillna({"relevance": 0})
    rate = graded.groupby("relevance")["clicked"].mean()
    noise = CONFIG.clicks.noise
    expected = [1 - (1 - noise) * (1 - 0.9 * attraction) for attraction in ATTRACTION]  # 0.9: mean quality
    assert rate.to_numpy() == pytest.approx(expected, abs=0.03)


def test_shoppers_stay_longer_with_relevant_documents(log: pd.DataFrame, qrels: pd.DataFrame) -> None:
    clicked = log[log["clicked"] & log["query_text"].isin(qrels["query_text"])]
    graded = clicked.merge(qrels, on=["query_text", "doc_id"], how="left").fillna({"relevance": 0})
    assert graded.groupby("relevance")["dwell_ms"].median().is_monotonic_increasing


def test_qrels_name_documents_and_texts_once(
    qrels: pd.DataFrame, documents: pd.DataFrame, query_truth: pd.DataFrame
) -> None:
    assert qrels["doc_id"].isin(documents.index).all()
    assert not qrels.duplicated(["query_text", "doc_id"]).any()
    assert set(qrels["relevance"]) == {1, 2, 3}
    assert set(qrels["query_text"]) == set(query_truth.index[query_truth["judged"]])


def test_judged_texts_are_recent_or_never_asked(
    qrels: pd.DataFrame, log: pd.DataFrame, query_truth: pd.DataFrame
) -> None:
    judged = query_truth.loc[qrels["query_text"].unique()]
    recent = set(log.loc[log["timestamp"] >= CONFIG.recent_from, "query_text"])
    asked = judged.index[judged["asked"] > 0]
    assert set(asked) <= recent
    assert len(asked) == CONFIG.judged_queries
    assert len(judged) - len(asked) == CONFIG.unseen_queries


def test_qrels_hold_every_listing_of_a_category_for_its_synonyms(
    tmp_path: Path,
) -> None:
    config = SimulateConfig(sessions=4_000, documents=600, queries=80, recent_share=0.99, misspellings=0.0)
    simulate(tmp_path / "shop", config)
    documents = pd.read_json(tmp_path / "shop" / "documents.jsonl.gz", lines=True)
    qrels = pd.read_parquet(tmp_path / "shop" / "qrels.parquet").groupby("query_text")
    checked = 0
    for name, entry in vocabulary().categories.items():
        for word in (name, vocabulary().plural_of(name), *entry.also):
            if word in qrels.groups:
                judged = qrels.get_group(word)
                assert set(judged["doc_id"]) == set(documents.loc[documents["category"] == name, "doc_id"])
                assert set(judged["relevance"]) == {3}
                checked += 1
    assert checked > 50


def test_repeated_listings_share_all_content(documents: pd.DataFrame, document_truth: pd.DataFrame) -> None:
    copies = document_truth["copy_of"].dropna()
    assert len(copies) == round(CONFIG.documents * CONFIG.duplicate_share)
    content = documents.drop(columns="updated_at")
    pd.testing.assert_frame_equal(
        content.loc[copies.index].reset_index(drop=True), content.loc[copies].reset_index(drop=True)
    )
    assert document_truth.loc[copies, "copy_of"].isna().all()


def test_repeated_listings_are_equally_relevant(qrels: pd.DataFrame, document_truth: pd.DataFrame) -> None:
    grades = qrels.pivot(index="query_text", columns="doc_id", values="relevance").fillna(0)
    copies = document_truth["copy_of"].dropna()
    copies = copies[copies.index.isin(grades.columns)]
    assert len(copies) > 0
    assert (grades[copies.index].to_numpy() == grades[copies].to_numpy()).all()


def test_cold_documents_are_shown_only_in_the_recent_part_and_are_judged(
    log: pd.DataFrame, documents: pd.DataFrame, document_truth: pd.DataFrame, qrels: pd.DataFrame
) -> None:
    cold = document_truth.index[document_truth["cold"]]
    assert len(cold) == round(CONFIG.documents * CONFIG.cold_share)
    shown = log[log["doc_id"].isin(cold)]
    assert len(shown) > 0
    assert shown["timestamp"].min() >= CONFIG.recent_from
    assert pd.to_datetime(documents.loc[cold, "updated_at"]).min() >= CONFIG.recent_from
    assert set(cold) & set(qrels["doc_id"])


def test_shoppers_use_words_that_the_catalogue_seldom_holds(
    log: pd.DataFrame, documents: pd.DataFrame, query_truth: pd.DataFrame
) -> None:
    asked = query_truth[query_truth["asked"] > 0]
    assert np.average(asked["misspelled"], weights=asked["asked"]) == pytest.approx(
        CONFIG.misspellings, abs=0.03
    )
    sofas = documents[documents["category"] == "sofa"]
    assert sofas["title"].str.contains("sofa").mean() > 0.75
    asks = log.drop_duplicates("impression_id")["query_text"]
    assert asks.str.contains("couch|settee|loveseat").sum() > 0.3 * asks.str.contains("sofa").sum()


def test_titles_and_queries_hold_other_scripts(documents: pd.DataFrame, query_truth: pd.DataFrame) -> None:
    chinese = "[\u4e00-\u9fff]"
    assert documents["title"].str.contains(chinese).any()
    assert query_truth.index.str.contains(chinese).any()


def test_word_overlap_is_a_decent_ranker_with_room_above_it(
    documents: pd.DataFrame, qrels: pd.DataFrame
) -> None:
    words = [
        set((title + " " + text).lower().split()) for title, text in documents[["title", "text"]].to_numpy()
    ]
    gain = 1 / np.log2(np.arange(2, 12))
    values = []
    for text, judged in qrels.groupby("query_text"):
        grade = judged.set_index("doc_id")["relevance"].reindex(documents.index, fill_value=0).to_numpy()
        overlap = np.array([len(set(str(text).split()) & held) for held in words])
        ideal = (np.sort(grade)[::-1][:10] * gain).sum()
        values.append((grade[np.argsort(-overlap, kind="stable")[:10]] * gain).sum() / ideal)
    assert 0.3 < np.mean(values) < 0.7


@pytest.mark.parametrize(
    "size",
    [
        {"documents": 1, "sessions": 1, "queries": 1},
        {"documents": 2, "sessions": 5, "cold_share": 0.99, "duplicate_share": 0.99},
        {"documents": 7, "sessions": 40, "cold_share": 0.8, "results": 100},
        {"documents": 7, "sessions": 40, "judged_queries": 0, "unseen_queries": 0},
        {"documents": 30, "sessions": 10, "days": 1, "recent_share": 0.999},
        {"documents": 30, "sessions": 10, "exploration": 1.0, "synonyms": 1.0, "misspellings": 1.0},
    ],
)
def test_any_size_works(tmp_path: Path, size: dict[str, float]) -> None:
    config = SimulateConfig.model_validate(size)
    simulate(tmp_path / "shop", config)
    log = pd.read_parquet(tmp_path / "shop" / "impressions.parquet")
    assert log["impression_id"].nunique() == config.sessions
    assert not log.duplicated(["impression_id", "doc_id"]).any()
    assert log["position"].max() <= min(config.results, config.documents)


@pytest.mark.parametrize("size", [{"documents": 0}, {"sessions": 0}, {"cold_share": 1.0}, {"searches": 5}])
def test_impossible_sizes_are_refused(size: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SimulateConfig.model_validate(size)
