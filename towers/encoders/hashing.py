"""Text as a bag of hashed words and character n-grams.

Hashing needs no vocabulary: a word that was never seen still has its n-grams, so a misspelling is near the
word it was meant to be. The hash is BLAKE2b, the same in every process and release.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from pydantic import Field, model_validator

from features.config import Config
from features.text import words
from towers.batch import Ragged

MAX_CHARACTERS = 20_000
"""Of each text; what follows is not read, so that a huge text cannot hold up a server."""

_MAX_WORD = 48  # characters of one word that give n-grams


class TextInput(Config):
    """Hashed words and character n-grams of the row's text."""

    width: int = Field(64, ge=1, le=4096, description="Size of a word's embedding.")
    word_buckets: int = Field(
        2**15, ge=1, le=2**24, description="Rows of the table that words are hashed to."
    )
    ngram_buckets: int = Field(
        2**14, ge=1, le=2**24, description="Rows of the table that character n-grams are hashed to."
    )
    ngram_min: int = Field(
        3, ge=1, le=16, description="Shortest character n-gram; a word is bracketed: <word>."
    )
    ngram_max: int = Field(3, ge=0, le=16, description="Longest character n-gram; 0 leaves n-grams out.")
    ngram_words: int = Field(8, ge=0, description="How many of a text's first words give n-grams.")
    ngram_weight: float = Field(0.3, gt=0, le=10, description="First weight of an n-gram relative to a word.")
    max_words: int = Field(64, ge=1, le=10_000, description="How many of a text's first words are read.")
    title_weight: float = Field(
        2.0, ge=1, le=100, description="How many times a word of a document's title counts."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of words and n-grams left out in training.")

    @model_validator(mode="after")
    def _range(self) -> "TextInput":
        if 0 < self.ngram_max < self.ngram_min:
            raise ValueError(
                f"ngram_max {self.ngram_max} is below ngram_min {self.ngram_min}; 0 leaves n-grams out"
            )
        return self

    @property
    def buckets(self) -> int:
        """Rows of the whole table: words first, then n-grams."""
        return self.word_buckets + self.ngram_buckets

    @property
    def table(self) -> tuple[int, ...]:
        """What two inputs must agree on to share a table."""
        return (self.width, self.word_buckets, self.ngram_buckets, self.ngram_min, self.ngram_max)


def hash_texts(fields: Sequence[tuple[Sequence[str], float]], config: TextInput) -> Ragged:
    """Return the distinct buckets of each row with a weight that grows with the logarithm of the count.

    Args:
        fields: Each a list of N texts and how many times its words count; read in order, so that the limits
            on words cut the last field first.
        config: Buckets and limits.

    Returns:
        N lists, sorted by bucket, with weights log2(1 + count).
    """
    rows = list(zip(*(texts for texts, _ in fields), strict=True))
    read: list[str] = []
    counts: list[float] = []
    lengths = np.zeros(len(rows), dtype=np.int64)
    for row, texts in enumerate(rows):
        room = config.max_words
        for text, (_, count) in zip(texts, fields, strict=True):
            found = words(text[:MAX_CHARACTERS])[:room]
            read.extend(found)
            counts.extend([count] * len(found))
            room -= len(found)
        lengths[row] = config.max_words - room
    return _merge(read, np.asarray(counts, dtype=np.float32), lengths, config)


def _merge(read: list[str], counts: np.ndarray, lengths: np.ndarray, config: TextInput) -> Ragged:
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(word, len(known)) for word in read), np.int64, len(read))
    pieces = [_pieces(word, _plan(config)) for word in known]
    sizes = np.fromiter((len(piece) for piece in pieces), np.int64, len(pieces))
    starts = np.concatenate([[0], sizes.cumsum()])
    flat = np.concatenate([*pieces, np.empty(0, np.int64)])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(read)) - np.repeat(lengths.cumsum() - lengths, lengths)
    taken = np.where(place < config.ngram_words, sizes[codes], 1)  # piece 0 is the word itself
    shift = np.repeat(starts[codes] - (taken.cumsum() - taken), taken)
    buckets = flat[np.arange(len(shift)) + shift]
    key = np.repeat(rows, taken) * config.buckets + buckets
    merged, inverse = np.unique(key, return_inverse=True)
    total = np.bincount(inverse, weights=np.repeat(counts, taken), minlength=len(merged))
    per_row = np.bincount(merged // config.buckets, minlength=len(lengths))
    return Ragged.from_lengths(
        torch.from_numpy(merged % config.buckets),
        torch.from_numpy(per_row.astype(np.int64)),
        torch.from_numpy(np.log2(1 + total).astype(np.float32)),
    )


def _plan(config: TextInput) -> tuple[int, int, int, int]:
    return config.word_buckets, config.ngram_buckets, config.ngram_min, config.ngram_max


@lru_cache(maxsize=2**17)
def _pieces(word: str, plan: tuple[int, int, int, int]) -> np.ndarray:
    """Return the buckets of a word: the word itself first, then its character n-grams."""
    word_buckets, ngram_buckets, shortest, longest = plan
    bracketed = f"<{word[:_MAX_WORD]}>"
    ngrams = (
        bracketed[start : start + size]
        for size in range(shortest, min(longest, len(bracketed) - 1) + 1)
        for start in range(len(bracketed) - size + 1)
    )
    buckets = [_hash(word) % word_buckets, *(word_buckets + _hash(ngram) % ngram_buckets for ngram in ngrams)]
    return np.asarray(buckets, dtype=np.int64)


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
