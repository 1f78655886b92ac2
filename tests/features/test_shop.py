"""Parts of the simulated shop by themselves: clicks, relevance, wording, vocabulary."""

import numpy as np
import pytest

from features.shop.catalogue import Catalogue, build_catalogue
from features.shop.clicks import ClickConfig, click, click_probability
from features.shop.draws import Draws
from features.shop.intents import KINDS, Intents, draw_intents, relevance
from features.shop.vocabulary import vocabulary
from features.shop.wording import misspell


def test_the_recorded_examination_explains_the_clicks_of_each_place() -> None:
    rng = np.random.default_rng(5)
    grade = rng.integers(4, size=(60_000, 6)).astype(np.int8)
    quality = rng.uniform(0.6, 1.2, grade.shape)
    config = ClickConfig(patience=0.85, satisfaction=0.9)
    happened = click(grade, quality, config, rng)
    expected = happened.examination * click_probability(grade, quality, config)
    assert happened.clicked.mean(axis=0) == pytest.approx(expected.mean(axis=0), abs=0.005)
    satisfied = happened.clicked[:, 0] & (grade[:, 0] == 3)
    ratio = happened.clicked[satisfied, 1].mean() / happened.clicked[~happened.clicked[:, 0], 1].mean()
    assert ratio == pytest.approx(0.1, abs=0.03)


def naive_grade(intents: Intents, catalogue: Catalogue, intent: int, document: int) -> int:
    asked: list[bool] = []
    for value in intents.attributes[intent]:
        if value >= 0:
            name = catalogue.attribute_names[value]
            asked.append(name in catalogue.frame["attributes"][document])
    if intents.brand[intent] >= 0:
        asked.append(list(vocabulary().brands)[intents.brand[intent]] == catalogue.frame["brand"][document])
    if intents.series[intent] >= 0:
        asked.append(intents.series[intent] == catalogue.series[document])
    if KINDS[intents.kind[intent]] == "brand" and not all(asked):
        return 0
    category = list(vocabulary().categories).index(catalogue.frame["category"][document])
    best = 3 if all(asked) else 2 if sum(asked) >= len(asked) / 2 else 1
    return min(best, int(intents.want[intent, category]))


def test_relevance_equals_a_naive_reading_of_the_listing() -> None:
    rng = np.random.default_rng(3)
    catalogue = build_catalogue(80, rng, duplicate_share=0.1, cold_share=0.1, popularity_skew=0.8)
    intents = draw_intents(120, catalogue, rng)
    assert set(intents.kind) == set(range(len(KINDS)))
    grade = relevance(intents, catalogue, np.arange(len(intents))[:, None], np.arange(80)[None, :])
    naive = [[naive_grade(intents, catalogue, i, d) for d in range(80)] for i in range(len(intents))]
    assert grade.tolist() == naive
    assert (grade.max(axis=1) > 0).all()


def test_a_misspelling_is_one_slip_that_keeps_the_first_letter() -> None:
    draws = Draws(np.random.default_rng(0).random(4_000))
    slips = {misspell("kettle", draws) for _ in range(500)}
    assert {"kettl", "ketttle"} & slips
    assert all(slip[0] == "k" and 5 <= len(slip) <= 7 for slip in slips)
    assert {"kettle"} < slips  # swapping two equal letters changes nothing


@pytest.mark.parametrize("text", ["", "mug", "笔记本电脑", "💻 tv"])
def test_short_words_and_other_scripts_are_never_misspelled(text: str) -> None:
    assert misspell(text, Draws(np.random.default_rng(0).random(2))) == text


def test_every_use_names_categories_of_the_shop() -> None:
    words = vocabulary()
    assert all(use.want.keys() <= words.categories.keys() for use in words.uses)
    values = {
        value for name in words.categories for held in words.attributes_of(name).values() for value in held
    }
    assert words.alternatives.keys() <= values
