from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from features.lexical import LexicalIndex
from features.text import document_text
from serving.build import IndexConfig
from serving.bundle import Bundle, load
from serving.canary import query_frame
from serving.encode import encode_documents, encode_queries
from serving.export import export
from serving.queries import QueryError, QueryLimits, UnknownDocumentError
from serving.retriever import Retriever
from serving.search import Search
from towers.encoders.text import Architecture, TextTowerConfig
from towers.two_tower import TowersConfig


@pytest.fixture
def retriever(bundle: Bundle) -> Retriever:
    return Retriever(bundle)


@pytest.fixture
def recommender(history_bundle: Bundle) -> Retriever:
    return Retriever(history_bundle)


def test_dense_search_ranks_by_the_towers_similarity(retriever: Retriever):
    towers, documents = retriever.bundle.towers, retriever.bundle.documents
    scores = encode_documents(towers, documents) @ encode_queries(towers, query_frame("red shoes", []))[0]
    best = np.argsort(-scores, kind="stable")[:5]
    hits = retriever.search("red shoes", k=5)
    assert [hit.doc_id for hit in hits] == documents["doc_id"].iloc[best].tolist()
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)


def test_a_batch_answers_as_one_by_one(retriever: Retriever):
    texts = ["red shoes", "茶壶", "desk lamp"]
    frames = pd.concat([query_frame(text, []) for text in texts], ignore_index=True)
    for text, hits in zip(texts, retriever.search_many(frames, 4), strict=True):
        assert [hit.doc_id for hit in hits] == [hit.doc_id for hit in retriever.search(text, k=4)]


def test_excluded_documents_are_not_returned_and_others_move_up(retriever: Retriever):
    full = [hit.doc_id for hit in retriever.search("red shoes", k=6)]
    left = retriever.search("red shoes", k=4, exclude=[full[0], full[2], "unknown"])
    assert [hit.doc_id for hit in left] == [full[1], full[3], full[4], full[5]]
    assert [hit.rank for hit in left] == [1, 2, 3, 4]


def test_k_beyond_the_corpus_is_clipped_and_said(retriever: Retriever):
    answer = retriever.answer(Search(text="red shoes", k=1_000))
    assert answer.k == len(answer.hits) == len(retriever.bundle.doc_ids)


def test_bm25_answers_as_the_lexical_index(retriever: Retriever):
    documents = retriever.bundle.documents
    texts = [document_text(*pair) for pair in zip(documents["title"], documents["text"], strict=True)]
    doc_ids, scores = LexicalIndex.build(documents["doc_id"].tolist(), texts).search("red shoes", 5)
    hits = retriever.answer(Search(text="red shoes", k=5, mode="bm25")).hits
    assert [hit.doc_id for hit in hits] == doc_ids
    assert [hit.score for hit in hits] == pytest.approx(scores.tolist())


def test_neighbours_are_nearest_by_similarity_without_the_document_itself(retriever: Retriever):
    vectors = encode_documents(retriever.bundle.towers, retriever.bundle.documents)
    row = retriever.bundle.rows["d03"]
    expected = [retriever.bundle.doc_ids[i] for i in np.argsort(-(vectors @ vectors[row])) if i != row][:3]
    assert [hit.doc_id for hit in retriever.neighbors("d03", 3).hits] == expected


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b\u200d", "\x00", "\ufeff"])
def test_a_query_without_a_visible_character_is_refused(retriever: Retriever, text):
    for mode in ("dense", "bm25"):
        with pytest.raises(QueryError, match="no visible character") as caught:
            retriever.answer(Search(text=text, mode=mode))
        assert caught.value.code == "empty_query"


def test_a_query_as_long_as_allowed_is_answered_and_one_longer_is_not(retriever: Retriever):
    assert retriever.search("a" * 2_000)
    with pytest.raises(QueryError, match="2001 characters; at most 2000"):
        retriever.search("a" * 2_001)
    with pytest.raises(QueryError, match="1000000 characters"):
        retriever.answer(Search(text="a" * 1_000_000, mode="bm25"))


@pytest.mark.parametrize("k", [0, -1, 1_001, 10**9])
def test_a_k_out_of_range_is_refused(retriever: Retriever, k):
    for ask in (lambda: retriever.search("lamp", k=k), lambda: retriever.neighbors("d03", k)):
        with pytest.raises(QueryError, match="from 1 to 1000"):
            ask()


def test_limits_are_configurable(bundle: Bundle):
    tight = Retriever(bundle, QueryLimits(max_k=3, max_text=5, max_exclude=1))
    with pytest.raises(QueryError, match="from 1 to 3"):
        tight.search("lamp", k=4)
    with pytest.raises(QueryError, match="at most 5"):
        tight.search("a lamp", k=1)
    with pytest.raises(QueryError, match="2 excluded ids; at most 1"):
        tight.search("lamp", k=1, exclude=["d01", "d02"])


def test_no_query_and_the_wrong_kind_of_query_are_refused(retriever: Retriever, recommender: Retriever):
    with pytest.raises(QueryError, match="give a text"):
        retriever.search()
    with pytest.raises(QueryError, match="answers a text, not a history"):
        retriever.search(history=["d01"])
    with pytest.raises(QueryError, match="answers a history, not a text"):
        recommender.search("red shoes")


def test_a_history_gets_documents_it_does_not_hold(recommender: Retriever):
    history = ["d00", "d05"]
    hits = recommender.search(history=history, k=100)
    assert {hit.doc_id for hit in hits} == set(recommender.bundle.doc_ids) - set(history)
    towers = recommender.bundle.towers
    scores = (
        encode_documents(towers, recommender.bundle.documents)
        @ encode_queries(towers, query_frame(None, history))[0]
    )
    np.testing.assert_allclose(
        [hit.score for hit in hits], [scores[recommender.bundle.rows[h.doc_id]] for h in hits], atol=1e-5
    )


def test_a_longer_history_than_those_of_training_is_read_from_its_end(recommender: Retriever):
    older, latest = ["d00", "d01"], ["d02", "d03", "d04", "d05"]
    whole = recommender.search(history=older + latest, k=8)
    end = recommender.search(history=latest, k=8, exclude=older)
    assert [hit.doc_id for hit in whole] == [hit.doc_id for hit in end]
    assert [hit.score for hit in whole] == pytest.approx([hit.score for hit in end], abs=1e-6)
    assert not {hit.doc_id for hit in whole} & {*older, *latest}  # what was seen stays out all the same


def test_unknown_documents_of_a_history_are_named_and_do_not_matter(recommender: Retriever):
    answer = recommender.answer(Search(history=("gone", "d00"), k=5))
    assert answer.unknown == ["gone"]
    assert answer.hits == recommender.search(history=["d00"], k=5)


@pytest.mark.parametrize("history", [[], ["gone"], ["d00"] * 1_001])
def test_a_history_that_says_nothing_or_too_much_is_refused(recommender: Retriever, history):
    with pytest.raises(QueryError, match="history"):
        recommender.search(history=history)


def test_bm25_of_a_history_asks_with_its_titles(recommender: Retriever):
    asked = recommender.answer(Search(history=("d00", "d05"), k=3, mode="bm25")).hits
    titles = "red running shoes green running shoes"
    same = Search(text=titles, k=3, exclude=("d00", "d05"), mode="bm25")
    assert asked == recommender.answer(same).hits


def test_an_unknown_document_has_no_neighbours(retriever: Retriever):
    with pytest.raises(UnknownDocumentError, match="'nope'"):
        retriever.neighbors("nope")


@pytest.mark.parametrize("kind", ["features", "transformer"])
def test_many_threads_get_the_answers_of_one_and_texts_are_normalised_as_in_training(
    bundle: Bundle, shop, make, tmp_path, kind
):
    if kind == "transformer":
        small = Architecture(vocabulary=400, layers=1, hidden=16, intermediate=32)
        tower = TextTowerConfig(architecture=small, max_length=16)
        make.checkpoint(
            tmp_path / "c", shop / "examples", TowersConfig(dimension=16, query=tower, document=tower)
        )
        exported = export(shop / "examples", tmp_path / "c", None, tmp_path / "bundles", IndexConfig(k=5))
        bundle = load(exported.path)
    retriever = Retriever(bundle)
    texts = ["red shoes", "a very long query about a blue scarf and a lamp", "茶壶", "lamp"] * 16
    alone = [[hit.doc_id for hit in retriever.search(text, k=5)] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: [hit.doc_id for hit in retriever.search(text, k=5)], texts))
        near = list(pool.map(lambda doc_id: retriever.neighbors(doc_id, 3).hits, bundle.doc_ids))
    assert together == alone
    assert retriever.search("  ＲＥＤ\u3000Shoes\u200b ") == retriever.search("red shoes")
    assert [len(hits) for hits in near] == [3] * len(bundle.doc_ids)


def test_of_many_searches_each_gets_its_own_answer_or_refusal(retriever: Retriever):
    searches = [
        Search(text="red shoes", k=3),
        Search(text="   "),
        Search(text="desk lamp", k=5, mode="bm25"),
        Search(history=("d01",)),
        Search(text="desk lamp", k=3, exclude=("d04",)),
        Search(text="tea", k=4, filters={"nothing": 1}),
        Search(text="blue scarf", k=4, mode="hybrid"),
        Search(text="red shoes", k=0),
        Search(text="tea kettle", k=3, filters={"doc_id": {"in": ["d01", "d03", "d08"]}}),
    ]
    answers = retriever.answer_many(searches)
    codes = [answer.code if isinstance(answer, QueryError) else None for answer in answers]
    assert codes == [None, "empty_query", None, "wrong_input", None, "unknown_field", None, "invalid_k", None]
    for search, answer in zip(searches, answers, strict=True):
        if not isinstance(answer, QueryError):
            alone = retriever.answer(search).hits
            assert [hit.doc_id for hit in answer.hits] == [hit.doc_id for hit in alone]
            assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in alone], abs=1e-6)
    assert {hit.doc_id for hit in answers[-1].hits} == {"d01", "d03", "d08"}
    assert retriever.answer_many([]) == []


def test_all_queries_are_encoded_in_one_call_and_equal_ones_searched_in_one(bundle: Bundle, monkeypatch):
    calls: list[tuple[str, int]] = []
    encode, search = type(bundle.query_encoder).encode, type(bundle.index).search

    def encoded(encoder, queries):
        calls.append(("encode", len(queries)))
        return encode(encoder, queries)

    def searched(index, query_BD, k, selection=None):
        calls.append((f"search {k}", len(query_BD)))
        return search(index, query_BD, k, selection)

    monkeypatch.setattr(type(bundle.query_encoder), "encode", encoded)
    monkeypatch.setattr(type(bundle.index), "search", searched)
    mixed = [Search(text=text, k=k) for text in ("red", "blue", "lamp") for k in (3, 5)]
    Retriever(bundle).answer_many([*mixed, Search(text="tea", mode="bm25")])
    assert calls == [("encode", 6), ("search 3", 3), ("search 5", 3)]


def test_filters_hold_in_every_mode_and_an_explanation_says_how_many_are_left(retriever: Retriever):
    allowed = [doc_id for doc_id in retriever.bundle.doc_ids if doc_id < "d09"]
    for mode in ("dense", "bm25", "hybrid"):
        filters = {"doc_id": {"in": allowed}}
        search = Search(text="red shoes", k=100, mode=mode, filters=filters, explain=True, exclude=("d00",))
        answer = retriever.answer(search)
        assert {hit.doc_id for hit in answer.hits} <= set(allowed) - {"d00"}
        assert answer.explanation.allowed == len(allowed) - 1
        assert answer.explanation.strategy == "exhaustive"
        found = f"{len(answer.hits)} documents were found, of those that "
        assert answer.notes[-1].startswith(found)
        assert answer.notes[-1].endswith("pass the filters and are not excluded")
    assert len(answer.hits) == len(allowed) - 1  # what shares no word is found by the towers


def test_few_and_many_excluded_ids_stay_out_alike(retriever: Retriever):
    order = [hit.doc_id for hit in retriever.search("red shoes", k=100)]
    for count in (1, 5, 20):
        unknown = tuple(f"x{number}" for number in range(200))
        hits = retriever.search("red shoes", k=3, exclude=(*order[:count], *unknown))
        assert [hit.doc_id for hit in hits] == order[count : count + 3]


def test_as_many_filter_values_as_allowed_are_read_and_one_more_is_not(bundle: Bundle):
    retriever = Retriever(bundle, QueryLimits(max_filters=3))
    title = {"title": "red wool scarf"}
    fits = {"doc_id": {"in": ["d01", "d02"]}, **title}
    assert len(retriever.answer(Search(text="red", filters=fits)).hits) == 1
    with pytest.raises(QueryError, match="4 values in filters; at most 3") as caught:
        retriever.answer(Search(text="red", filters={"doc_id": {"in": ["d01", "d02", "d03"]}, **title}))
    assert caught.value.code == "too_many_filters"


def test_explaining_changes_no_hit(retriever: Retriever, recommender: Retriever):
    for engine, asked in ((retriever, {"text": "Red SHOES zzz"}), (recommender, {"history": ("d00", "d05")})):
        for mode in ("dense", "bm25", "hybrid"):
            plain = engine.answer(Search(**asked, k=4, mode=mode))
            told = engine.answer(Search(**asked, k=4, mode=mode, explain=True))
            assert [hit.doc_id for hit in plain.hits] == [hit.doc_id for hit in told.hits]
            assert [hit.score for hit in plain.hits] == pytest.approx([hit.score for hit in told.hits])
            assert plain.explanation is None
            why = told.explanation
            for hit, reason in zip(told.hits, why.hits, strict=True):
                place = {"dense": reason.dense, "bm25": reason.bm25}.get(mode)
                assert place is None or (place.rank, place.score) == (hit.rank, pytest.approx(hit.score))
            if asked.get("text"):
                assert (why.text, why.words, why.unknown_words, why.tokens) == (
                    "red shoes zzz",
                    ["red", "shoes", "zzz"],
                    ["zzz"],
                    3,
                )
            else:
                assert why.history == ["d00", "d05"]


def test_embedded_queries_are_the_vectors_that_are_searched(retriever: Retriever):
    vectors = retriever.embed([Search(text="Red  shoes"), Search(text="茶壶")])
    alone = encode_queries(retriever.bundle.towers, query_frame("red shoes", []))
    np.testing.assert_allclose(vectors[0], alone[0], atol=1e-6)
    with pytest.raises(QueryError, match=r"queries\.1: the query has no visible character"):
        retriever.embed([Search(text="a"), Search(text="")])


def test_searches_with_the_same_conditions_share_one_selection_and_one_search(retriever, monkeypatch):
    part = retriever.bundle.doc_ids[:9]
    same = [
        Search(text=text, k=4, filters={"doc_id": {"in": [*part]}}) for text in ("red shoes", "lamp", "tea")
    ]
    other = Search(text="red shoes", k=4, filters={"doc_id": {"in": [*part]}}, exclude=tuple(part[:2]))
    alone = [retriever.answer(one).hits for one in (*same, other)]
    calls = []
    search = retriever.bundle.index.search
    monkeypatch.setattr(
        retriever.bundle.index,
        "search",
        lambda query_BD, k, selection=None: (
            calls.append((len(query_BD), selection.count)) or search(query_BD, k, selection)
        ),
    )
    together = [answer.hits for answer in retriever.answer_many([*same, other])]
    assert [[hit.doc_id for hit in hits] for hits in together] == [[h.doc_id for h in hits] for hits in alone]
    assert calls == [(3, 9), (1, 7)]


def test_conditions_that_only_look_alike_are_not_shared(retriever):
    asked = [Search(text="lamp", filters={"cold": value}) for value in (False, 0, False, [False], 0.0)]
    answers = retriever.answer_many(asked)
    assert [getattr(answer, "code", None) for answer in answers] == [
        None, *["invalid_filter"], None, *["invalid_filter"] * 2
    ]  # fmt: skip
