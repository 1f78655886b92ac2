"""Unit vectors with the structure of trained embeddings, and held-out queries from the same distribution.

Topics of unequal size (Zipf) hold subtopics, subtopics hold documents, and every level's noise has a spectrum
that decays, as an embedding's does: a few directions carry most of the variance, so the intrinsic
dimension is far below D. A query is drawn exactly as a document is, and is not one.

Shapes: N documents, B queries, D embedding.
"""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

_ZIPF = 0.7  # the largest of 400 topics holds about 1 in 20 documents
_DECAY = 0.4  # the i-th direction's standard deviation is i ** -0.4
_SUBTOPIC, _DOCUMENT = 0.9, 1.1  # spread below a topic and below a subtopic, relative to that of the topics
_CHUNK = 100_000


def draw(size: int, queries: int, dimension: int, seed: int) -> tuple[Vectors, Vectors]:
    """Return (N, D) documents and (B, D) queries, float32, of unit length.

    Args:
        size: N.
        queries: B.
        dimension: D.
        seed: Of everything; equal arguments give equal vectors.
    """
    random = np.random.default_rng(seed)
    topics, subtopics = max(10, size // 2_500), max(30, size // 100)
    spectrum = np.arange(1, dimension + 1, dtype=np.float32) ** -_DECAY
    topic = _normal(random, topics, spectrum)
    parent = random.choice(topics, subtopics, p=_zipf(topics))
    subtopic = topic[parent] + _SUBTOPIC * _normal(random, subtopics, spectrum)
    share = random.permutation(_zipf(subtopics))
    rotation = np.linalg.qr(random.standard_normal((dimension, dimension)))[0].astype(np.float32)
    parts = []
    for start in range(0, size + queries, _CHUNK):
        count = min(_CHUNK, size + queries - start)
        of = random.choice(subtopics, count, p=share)
        part = (subtopic[of] + _DOCUMENT * _normal(random, count, spectrum)) @ rotation
        parts.append(part / np.linalg.norm(part, axis=1, keepdims=True))
    drawn = np.concatenate(parts)
    return drawn[:size], drawn[size:]


def _normal(random: np.random.Generator, count: int, spectrum: Vectors) -> Vectors:
    return random.standard_normal((count, len(spectrum)), dtype=np.float32) * spectrum


def _zipf(count: int) -> npt.NDArray[np.float64]:
    share = np.arange(1, count + 1) ** -_ZIPF
    return share / share.sum()
