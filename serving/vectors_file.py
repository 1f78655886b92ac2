"""A bundle's document vectors as one Parquet file, for other engines and for analysis.

Columns: `doc_id` (string) and `vector` (fixed-size list of float32), in the catalogue's order. The schema's
metadata says which bundle, similarity and dimension they are of.

Shapes: N documents, D embedding.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError
from serving.bundle import Bundle
from serving.encode import encode_documents
from serving.vectors import Vectors

_ROWS = 65_536


def write_vectors(bundle: Bundle, path: Path) -> int:
    """Write the (N, D) vectors of a bundle's documents; the file is whole or not there.

    They are taken out of the index where it holds them exactly, and encoded again where it holds codes.

    Returns:
        N: how many were written.

    Raises:
        ConfigError: If the file cannot be written.
        BundleError: If a document has no finite vector.
    """
    dimension = bundle.index.dimension
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), dimension)
    about = {
        "bundle_id": bundle.bundle_id,
        "similarity": bundle.towers.similarity,
        "dimension": str(dimension),
    }
    schema = pa.schema(
        [pa.field("doc_id", pa.string(), nullable=False), pa.field("vector", kind, nullable=False)], about
    )
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: {path.parent} is not a folder; choose another file")
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            for start, vectors in _parts(bundle):
                ids = pa.array(bundle.doc_ids[start : start + len(vectors)], pa.string())
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
                writer.write_table(pa.Table.from_arrays([ids, values], schema=schema))
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; choose another file") from None
    finally:
        staging.unlink(missing_ok=True)
    return len(bundle.doc_ids)


def _parts(bundle: Bundle) -> Iterator[tuple[int, Vectors]]:
    for start in range(0, len(bundle.doc_ids), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(bundle.doc_ids)))
        if bundle.index.is_lossless:
            yield start, bundle.index.vectors(rows)
        else:
            yield start, encode_documents(bundle.towers, bundle.documents.iloc[rows].reset_index(drop=True))
