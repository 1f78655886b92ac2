"""Repair of UTF-8 text that was read as Latin-1 or Windows-1252.

Each byte of a UTF-8 sequence became one character: "ç" (bytes C3 A7) became "Ã§", and "ã§" where the text
was lower-cased afterwards. Windows-1252 shows letters and quotation marks where Latin-1 has controls.
"""

import itertools
import re
from typing import NamedTuple


def _bytes_of(character: str) -> tuple[int, ...]:
    """Return the bytes that may have become this character, the most direct reading first."""
    found: dict[int, None] = {}
    for original in (character, character.upper()):
        for encoding in ("latin-1", "cp1252"):
            if len(original) == 1 and (byte := original.encode(encoding, errors="ignore")):
                found[byte[0]] = None
    return tuple(found)


def _characters_of(first: int, last: int) -> str:
    """Return every character that a byte of this range may have become."""
    raw = bytes(range(first, last + 1))
    shown = raw.decode("latin-1") + raw.decode("cp1252", errors="ignore")
    return "".join(sorted({*shown, *(low for low in shown.lower() if len(low) == 1)}))


_LEADS = _characters_of(0xC2, 0xC5) + _characters_of(0xCE, 0xDF) + _characters_of(0xE0, 0xF4)
_TRAILS = _characters_of(0x80, 0xBF)
_BYTES = {character: _bytes_of(character) for character in _LEADS + _TRAILS}
_SUSPICIOUS = re.compile(f"[{re.escape(_LEADS)}][{re.escape(_TRAILS)}]")
SUSPICIOUS = f"[{_LEADS}][{_TRAILS}]".replace("\\", "")
"""A pattern without which `repair_mojibake` changes nothing, for engines that select rows by a pattern."""

_CLOSING = "\u00a0\u00ad«»®·‘’“”•–—™…‹›"  # may follow an accented letter in good text
_INSIDE_WORDS = "\u00ad«»®"  # of these, what good text does not have between two letters
_MAX_PASSES = 3  # text that was misread twice needs two


class _Sequence(NamedTuple):
    start: int
    end: int
    repaired: str
    certain: bool


def repair_mojibake(text: str) -> str:
    """Return the text as it was before its UTF-8 was misread; good text comes back unchanged.

    "ã" and "é" are letters of good text too, so a sequence is repaired only where good text could not
    have it ("ã§", "â€™"), or beside such a sequence, or where misread letters follow one another without a
    gap. "São Paulo", "«amanhã»" and "café…" stay.
    """
    for _ in range(_MAX_PASSES):
        sequences = _sequences(text)
        if not sequences:
            break
        text = _replace(text, sequences)
    return text


def _replace(text: str, sequences: list[_Sequence]) -> str:
    parts: list[str] = []
    done = 0
    for sequence in sequences:
        parts += (text[done : sequence.start], sequence.repaired)
        done = sequence.end
    return "".join([*parts, text[done:]])


def _sequences(text: str) -> list[_Sequence]:
    """Return the misread sequences of a text, in order; none where nothing proves that it was misread."""
    found: list[_Sequence] = []
    end = 0
    for match in _SUSPICIOUS.finditer(text):
        if match.start() >= end and (sequence := _decode(text, match.start())):
            found.append(sequence)
            end = sequence.end
    touching = any(left.end == right.start for left, right in itertools.pairwise(found))
    return found if touching or any(sequence.certain for sequence in found) else []


def _decode(text: str, start: int) -> _Sequence | None:
    """Read the longest UTF-8 sequence that may have become the characters at `start`."""
    lead = text[start]
    readings = sorted(((_length(byte), byte) for byte in _BYTES[lead]), reverse=True)
    for length, byte in readings:
        trail = text[start + 1 : start + length]
        if length < 2 or len(trail) < length - 1 or any(character not in _TRAILS for character in trail):
            continue
        for trail_bytes in itertools.product(*(_BYTES[character] for character in trail)):
            character = bytes((byte, *trail_bytes)).decode("utf-8", errors="ignore")
            if (character.isprintable() and character) or character in ("\u00a0", "\u00ad"):
                lowered = bytes((byte,)).decode("latin-1") != lead
                end = start + length
                certain = _certain(lead, trail, text[end : end + 1])
                return _Sequence(start, end, character.lower() if lowered else character, certain)
    return None


def _length(byte: int) -> int:
    """Return how many bytes the UTF-8 sequence has that this byte leads; 0 where it leads none of ours."""
    if 0xC2 <= byte <= 0xC5 or 0xCE <= byte <= 0xDF:
        return 2
    if 0xE0 <= byte <= 0xEF:
        return 3
    return 4 if 0xF0 <= byte <= 0xF4 else 0


def _certain(lead: str, trail: str, following: str) -> bool:
    """Return whether good text never has this lead and trail before this character."""
    if len(trail) == 3 or any("\u0080" <= character <= "\u009f" for character in trail):
        return True
    if len(trail) == 2:
        return any(character not in _CLOSING for character in trail)
    if lead == "ã" and trail == "€":  # also what is left of "、" and "【" where the third byte was dropped
        return False
    if trail in _CLOSING:
        return trail in _INSIDE_WORDS and following.isalpha() and lead in "ÂÃâã"
    return lead in "ÂÃâã" or following.isalpha()
