import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.mojibake import SUSPICIOUS, repair_mojibake

MISREAD = [
    "engraçada",
    "gérard depardieu",
    "der Lämmer",
    "rodríguez, señor",
    "Привет мир",
    "日本語",
    "emoji 😀 ok",
    "it’s “quoted” – dash…",
    "10 °C for £5",
    "Łódź",
    "ÉCOLE",
]
GOOD = [
    "São Paulo",
    "«amanhã»",
    "amanhã…",
    "maçã”",
    "café »",
    "« été »",
    "manhã\u00a0de sol",
    "på…",
    "Björk™",
    "café®",
    "Škoda Œuvre",
    "crème brûlée 25µm",
    "CÃO MAÇÃ",
    "Привет",
    "日本語 ☕",
    "",
]


def misread(text: str, encoding: str) -> str:
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", MISREAD)
def test_misread_text_is_repaired(text: str, encoding: str) -> None:
    assert repair_mojibake(misread(text, encoding)) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", MISREAD)
def test_misread_text_is_repaired_after_lower_casing(text: str, encoding: str) -> None:
    assert repair_mojibake(misread(text, encoding).lower()) == text.lower()


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_left_alone(text: str) -> None:
    assert repair_mojibake(text) == text


def test_text_that_was_misread_twice_is_repaired() -> None:
    assert repair_mojibake(misread(misread("né", "latin-1"), "latin-1")) == "né"


@given(st.text())
def test_text_without_a_suspicious_pair_never_changes(text: str) -> None:
    assert re.search(SUSPICIOUS, text) or repair_mojibake(text) == text


@given(st.text(alphabet="aãâ©§€™é»\u0080\u009f°ðÿœš"))
def test_any_mixture_is_survived(text: str) -> None:
    repair_mojibake(text).encode()
