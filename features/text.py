"""The one normaliser, tokeniser and text template of training, evaluation and serving.

A bundle records `NORMALISER`, and a server refuses a bundle whose normaliser it does not have: the same
text must become the same words on both sides. Change a rule here and the version changes with it.
"""

import re
import unicodedata

from features.mojibake import repair_mojibake as repair_mojibake

NORMALISER = "nfkc-casefold-1"
"""Version of `normalise`, `words` and `document_text`."""

TEXT_TEMPLATE = "{title}\n{text}"
"""How a document's title and text become one text; an empty part is left out."""

_ASCII_CONTROLS = dict.fromkeys((*range(9), *range(14, 28), 127))  # \t to \r and 28 to 31 are blanks
_INVISIBLE = frozenset({"Cc", "Cf", "Cs"})  # controls, zero-width and direction marks, lone surrogates
_VARIATION_SELECTORS = frozenset("\ufe0e\ufe0f")  # "❤" as text or as picture is the same word


def _ranges_of_marks() -> str:
    """Return the combining marks as ranges of a character class; Python's `re` has no name for them."""
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code in codes if unicodedata.category(chr(code - 1))[0] != "M"]
    ends = [code for code in codes if unicodedata.category(chr(code + 1))[0] != "M"]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


# Without its marks a word of Hindi, Thai or Arabic would fall into pieces.
_MARKS = _ranges_of_marks()
_HAN_KANA = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_EMOJI = (
    "\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff"
)
_TOKEN = re.compile(
    f"(?P<han>[{_HAN_KANA}]+)"
    f"|(?P<word>(?:(?![{_HAN_KANA}])[^\\W_][{_MARKS}]*)+)"
    f"|(?P<emoji>[\U0001f1e6-\U0001f1ff]{{2}}|[{_EMOJI}])"
)
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")


def normalise(text: str) -> str:
    """Return the text in the form in which two texts that mean the same are equal.

    Compatibility forms (full width, ligatures) become plain, case is folded, invisible characters
    disappear, each run of white space becomes one space. Any script and emoji survive. Idempotent.
    """
    if text.isascii():
        return " ".join(text.translate(_ASCII_CONTROLS).lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    visible = "".join(
        character
        for character in folded
        if character.isspace()
        or (unicodedata.category(character) not in _INVISIBLE and character not in _VARIATION_SELECTORS)
    )
    # Folding and removal can bring characters together that compose or fold once more.
    settled = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return " ".join(settled.split())


def words(text: str) -> list[str]:
    """Split a text into the words that hashing and BM25 count, in order of appearance.

    The text is normalised first. A word is a run of letters, digits and their marks in any script. Chinese
    and Japanese have no spaces, so a run of n characters gives each character and each of its n - 1 pairs.
    An emoji is a word; punctuation is none. "men's" counts as "mens".
    """
    found: list[str] = []
    for match in _TOKEN.finditer(_POSSESSIVE.sub("s", normalise(text))):
        token = match.group()
        if match.lastgroup == "han":
            found.extend(token)
            found.extend(token[start : start + 2] for start in range(len(token) - 1))
        else:
            found.append(token)
    return found


def document_text(title: str | None, text: str | None) -> str:
    """Return the one text of a document, by `TEXT_TEMPLATE`."""
    return "\n".join(part for part in (title, text) if part and not part.isspace())
