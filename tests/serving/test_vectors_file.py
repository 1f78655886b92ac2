from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError
from serving.build import IndexConfig
from serving.bundle import Bundle, load
from serving.encode import encode_documents
from serving.vectors_file import write_vectors


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["vector"].to_pylist(), dtype=np.float32)


def test_a_file_holds_every_id_and_vector_and_says_whose_they_are(bundle: Bundle, tmp_path: Path):
    assert write_vectors(bundle, tmp_path / "vectors.parquet") == len(bundle.doc_ids)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["doc_id"].to_pylist() == bundle.doc_ids
    np.testing.assert_allclose(
        vectors_of(table), encode_documents(bundle.towers, bundle.documents), atol=1e-6
    )
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert about == {"bundle_id": bundle.bundle_id, "similarity": "cosine", "dimension": "16"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["vectors.parquet"]


def test_where_the_index_holds_codes_the_documents_are_encoded_again(make: SimpleNamespace, tmp_path: Path):
    rounded = load(make.shop(tmp_path, index=IndexConfig(factory="SQ4", k=5)).path)
    assert not rounded.index.is_lossless
    write_vectors(rounded, tmp_path / "vectors.parquet")
    written = vectors_of(pq.read_table(tmp_path / "vectors.parquet"))
    np.testing.assert_allclose(written, encode_documents(rounded.towers, rounded.documents), atol=1e-6)


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(bundle: Bundle, tmp_path: Path):
    with pytest.raises(ConfigError, match="choose another file"):
        write_vectors(bundle, tmp_path / "absent" / "vectors.parquet")
    assert list(tmp_path.iterdir()) == []
