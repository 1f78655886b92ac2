import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from towers.batch import Ragged
from towers.encoders.hashing import MAX_CHARACTERS, TextInput, hash_texts
from towers.encoders.tables import TextTable, first_importance

CONFIG = TextInput(word_buckets=2**14, ngram_buckets=2**14)
WORDS_ONLY = TextInput(ngram_max=0)


def buckets(text: str, config: TextInput = CONFIG) -> set[int]:
    return set(hash_texts([([text], 1.0)], config).values.tolist())


def hashed(texts: list[str], config: TextInput = CONFIG) -> Ragged:
    return hash_texts([(texts, 1.0)], config)


def test_hashes_are_the_same_in_another_process():
    program = (
        "from towers.encoders.hashing import *; config = TextInput(word_buckets=2**14, ngram_buckets=2**14);"
        "print(hash_texts([(['red shoe 手机'], 1.0)], config).values.tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert other.stdout.strip() == str(hashed(["red shoe 手机"]).values.tolist())


def test_a_text_hashes_alike_alone_and_among_others():
    texts = ["red shoe", "", "blue shirt blue", "red"]
    together = hashed(texts)
    for row, text in enumerate(texts):
        alone, taken = hashed([text]), together.take(torch.tensor([row]))
        assert torch.equal(alone.values, taken.values)
        assert torch.equal(alone.weights, taken.weights)


@pytest.mark.parametrize("text", ["手机", "😀", "ありがとう", "привет", "हिन्दी", "ＡＢＣ", "a"])
def test_text_of_any_script_gives_features(text):
    assert len(buckets(text)) > 0


@pytest.mark.parametrize("text", ["", "   ", "\x00", "!?", "\u200b"])
def test_a_text_without_words_gives_an_empty_list(text):
    assert hashed([text, "x"]).lengths.tolist()[0] == 0


def test_a_misspelt_word_shares_character_ngrams_with_the_right_one():
    assert len(buckets("headphones") & buckets("headphnes")) >= 5
    assert not buckets("headphones", WORDS_ONLY) & buckets("headphnes", WORDS_ONLY)


def test_words_are_normalised_before_hashing():
    assert buckets("RED   Shoe") == buckets("red shoe") == buckets("ｒｅｄ shoe!")


def test_a_repeated_word_weighs_more_by_the_logarithm_of_its_count():
    ragged = hashed(["red red red blue"], WORDS_ONLY)
    assert sorted(ragged.weights.tolist()) == pytest.approx([1.0, 2.0])


def test_words_of_the_title_count_as_often_as_configured():
    ragged = hash_texts([(["red"], 3.0), (["blue"], 1.0)], WORDS_ONLY)
    assert sorted(ragged.weights.tolist()) == pytest.approx([1.0, 2.0])


def test_ngrams_come_from_the_first_words_only():
    config = TextInput(ngram_words=1)
    assert buckets("red shoe", config) == buckets("red", config) | buckets("shoe", WORDS_ONLY)


def test_words_and_ngrams_lie_in_separate_ranges():
    assert all(bucket < WORDS_ONLY.word_buckets for bucket in buckets("red shoe", WORDS_ONLY))
    assert sum(bucket < CONFIG.word_buckets for bucket in buckets("red shoe")) == 2
    assert max(buckets("red shoe")) < CONFIG.buckets


def test_words_beyond_the_limit_are_left_out_of_the_last_field_first():
    config = TextInput(max_words=3, ngram_max=0)
    limited = hash_texts([(["a b"], 1.0), (["c d e"], 1.0)], config)
    assert set(limited.values.tolist()) == buckets("a b c", config)


@pytest.mark.timeout(20)
def test_a_text_of_a_megabyte_is_bounded():
    assert len(hashed(["word " * 200_000 + "end"]).values) < 20
    assert len(hashed(["x" * 1_000_000]).values) < 100
    assert len(hashed(["手机电脑" * 250_000]).values) <= CONFIG.max_words * 3
    assert MAX_CHARACTERS < 1_000_000


def test_no_texts_give_no_rows():
    assert len(hashed([])) == 0


def test_an_impossible_range_of_ngrams_is_refused():
    with pytest.raises(ValidationError, match="ngram_max 2 is below ngram_min 4"):
        TextInput(ngram_min=4, ngram_max=2)


def test_the_text_table_is_the_importance_weighted_sum_scaled_by_its_weights():
    texts = hashed(["red shoe", "", "blue"])
    torch.manual_seed(0)
    table = TextTable(torch.rand(CONFIG.buckets) + 0.1, 8)
    embedded = table(texts, 0.0).detach()
    importance, embedding = table.importance.detach(), table.embedding.detach()
    for row in range(3):
        part = texts.take(torch.tensor([row]))
        weights = [float(importance[v]) * float(w) for v, w in zip(part.values, part.weights, strict=True)]
        naive = sum((w * embedding[v] for v, w in zip(part.values, weights, strict=True)), torch.zeros(8))
        naive = naive / math.sqrt(sum(w * w for w in weights) + 1e-6)
        torch.testing.assert_close(embedded[row], naive)


def test_rare_words_start_more_important_than_frequent_ones_and_unseen_words_silent():
    texts = hashed(["the red shoe", "the blue shirt", "the cap"], WORDS_ONLY)
    importance = first_importance([texts], WORDS_ONLY)
    the, red, unseen = (
        importance[next(iter(buckets(word, WORDS_ONLY)))] for word in ("the", "red", "unheard")
    )
    assert 0 < the < red
    assert unseen == 0


def test_words_are_dropped_in_training_only():
    table = TextTable(torch.ones(CONFIG.buckets), 8)
    texts = hashed(["red shoe blue shirt green cap"])
    assert torch.equal(table.eval()(texts, 0.5), table(texts, 0.5))
    assert not torch.equal(table.train()(texts, 0.5), table.eval()(texts, 0.5))
