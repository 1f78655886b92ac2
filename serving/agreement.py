"""Whether an index holds what the towers make of the catalogue: every document encoded again and compared.

Loading compares a few, by the canaries. This takes as long as an export's encoding, and finds what digests do
not where somebody wrote them anew: a vector, a tower's weight or a document that is another one.

Shapes: N documents, D embedding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from features.errors import BundleError
from serving.bundle import Bundle
from serving.encode import encode_documents
from serving.faiss_file import read_faiss
from serving.index import Index
from serving.subsets import stored_vectors
from serving.vectors import Vectors

_ROWS = 16_384
_TOLERANCE = 1e-3  # of a vector's length; another CPU or thread count stays below 1e-5
_SLACK = 1.01  # a component between two codes may have either


def compare(bundle: Bundle) -> int:
    """Encode every document again and compare it with its vector in the index.

    A vector may be off by what its codes lose, which is measured by adding the new one to an empty index with
    the same centroids and ranges.

    Returns:
        N: how many were compared; 0 where this kind of index gives no vector back.

    Raises:
        BundleError: If a document has another vector in the index; names the first.
    """
    try:
        bundle.index.vectors(np.arange(0, 1))
    except BundleError:
        return 0
    codes = _codes(bundle)
    for start in range(0, len(bundle.doc_ids), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(bundle.doc_ids)))
        fresh = encode_documents(bundle.towers, bundle.documents.iloc[rows].reset_index(drop=True))
        allowed = _TOLERANCE * np.maximum(1.0, np.linalg.norm(fresh, axis=1))
        if codes is not None:
            allowed = allowed + _SLACK * np.linalg.norm(codes(fresh) - fresh, axis=1)
        apart = np.linalg.norm(bundle.index.vectors(rows) - fresh, axis=1)
        wrong = np.flatnonzero(~(apart <= allowed))
        if len(wrong):
            doc_id, gap = bundle.doc_ids[start + int(wrong[0])], float(apart[wrong[0]])
            raise BundleError(
                f"bundle {bundle.bundle_id}: document {doc_id!r} has another vector in the index than its "
                f"towers give it ({gap:.3g} apart); export it again"
            )
    return len(bundle.doc_ids)


def _codes(bundle: Bundle) -> Callable[[Vectors], Vectors] | None:
    """Return what vectors become in an index of codes; None where they stay as they are."""
    if bundle.index.is_lossless:
        return None
    empty: Any = read_faiss(bundle.artifact.path / "index" / Index.file)

    def stored(vector_ND: Vectors) -> Vectors:
        empty.reset()
        empty.add(vector_ND)
        return stored_vectors(empty, np.arange(len(vector_ND)))

    return stored
