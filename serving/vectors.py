"""Vectors that may be indexed and searched; FAISS itself checks nothing.

A NaN, a component of 1e30 or a vector of another length must be refused before FAISS sees it. Scores are
inner products, so the similarity of the towers must be one that inner product computes.

Shapes: B vectors, D embedding.
"""

import numpy as np
import numpy.typing as npt

from features.errors import BundleError

Vectors = npt.NDArray[np.float32]
SIMILARITIES = ("cosine", "dot")
MAX_NORM = 1e6
"""Longest vector accepted; trained towers stay below 1e3, and one component of 1e30 wins every search."""

_UNIT_TOLERANCE = 1e-3


def check_vectors(vectors: Vectors, dimension: int) -> Vectors:
    """Return the vectors C-contiguous, or refuse them.

    Raises:
        ValueError: Unless `vectors` is float32 (B, dimension), finite, with norms up to `MAX_NORM`.
    """
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise ValueError(
            f"vectors have dtype {getattr(vectors, 'dtype', type(vectors))}; float32 is required"
        )
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"vectors have shape {vectors.shape}; (B, {dimension}) is required")
    refused = unusable_rows(vectors)
    if refused.size:
        raise ValueError(f"vector {refused[0]} is not finite or longer than {MAX_NORM:g}")
    return np.ascontiguousarray(vectors)


def unusable_rows(vectors: Vectors) -> npt.NDArray[np.int64]:
    """Return the rows that are not finite or whose norm exceeds `MAX_NORM`."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(vectors, axis=1)
    return np.flatnonzero(~(norm <= MAX_NORM))  # NaN compares false


def check_similarity(vectors: Vectors, similarity: str) -> None:
    """Assert that inner product is the similarity of these vectors.

    Raises:
        BundleError: If the similarity is unknown, a vector is not finite or absurdly long, or a `cosine`
            vector has neither unit length nor none.
    """
    if similarity not in SIMILARITIES:
        raise BundleError(
            f"similarity {similarity!r} cannot be indexed by inner product; one of {SIMILARITIES} can"
        )
    refused = unusable_rows(vectors)
    if refused.size:
        raise BundleError(f"vector {refused[0]} is not finite or longer than {MAX_NORM:g}")
    if similarity == "cosine" and len(vectors):
        norm = np.linalg.norm(vectors, axis=1)
        worst = float(
            np.where(norm == 0, 0.0, np.abs(norm - 1.0)).max()
        )  # a zero vector is nobody's neighbour
        if not worst <= _UNIT_TOLERANCE:
            raise BundleError(f"cosine vectors must have unit length; one is off by {worst:.3g}")
