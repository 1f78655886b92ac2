import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.text import document_text, normalise, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Running\tSHOES \n", "running shoes"),
        ("ＡＢＣ １２３", "abc 123"),
        ("Straße ﬁne", "strasse fine"),
        ("cafe\u0301", "café"),
        ("cafe\u200b\u0301", "café"),
        ("a\x00b\u200bc\ufeff", "abc"),
        ("绿茶 🍵", "绿茶 🍵"),
        ("❤\ufe0f", "❤"),
        ("bad \ud800 surrogate", "bad surrogate"),
        ("", ""),
    ],
)
def test_texts_that_mean_the_same_are_normalised_alike(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(
    st.text()
    | st.text(alphabet="aẞİıſﬁΐʼn\u0345\u0301\u0323\u0130\u1fb4\u200b\u200d\ufe0f\u3099かｶﾞ각\u11a8 ")
)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_normalising_any_single_character_is_stable_and_writable_as_utf_8() -> None:
    for code in range(0, sys.maxunicode + 1, 7):
        once = normalise(chr(code))
        assert normalise(once) == once
        once.encode()


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_equals_the_long_way(text: str) -> None:
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    assert normalise(text) == " ".join(visible.lower().split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Men's shoes, size 42!", ["mens", "shoes", "size", "42"]),
        ("绿茶", ["绿", "茶", "绿茶"]),
        ("tea 烏龍茶2g", ["tea", "烏", "龍", "茶", "烏龍", "龍茶", "2g"]),
        ("हिन्दी สวัสดี", ["हिन्दी", "สวัสดี"]),
        ("한국어", ["한국어"]),
        ("🍵🍵 👍🏽 🇩🇪", ["🍵", "🍵", "👍", "🇩🇪"]),
        ("!?., …", []),
    ],
)
def test_words_of_any_script_are_found(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_are_those_of_the_normalised_text(text: str) -> None:
    assert words(text) == words(normalise(text))


def test_an_empty_part_leaves_no_trace_in_the_text_of_a_document() -> None:
    assert document_text("Tea", "Green") == "Tea\nGreen"
    assert document_text("Tea", None) == document_text("Tea", " ") == "Tea"
    assert document_text(None, None) == ""
