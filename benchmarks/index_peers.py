"""The indexes that `benchmarks/index.py` compares: how each is built, set and searched, in its own terms.

Everybody gets the same float32 unit vectors, builds with the same number of threads, searches on one, and is
tuned by its own parameters. Choices that its users make are stated in `about`.

Shapes: N documents, B queries, D embedding, k neighbours.
"""

import tempfile
import time
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import numpy.typing as npt
from cluster_vectors import Vectors

from serving.build import IndexConfig
from serving.choose import choose
from serving.curve import Curve
from serving.tune import one_thread

Rows = npt.NDArray[np.int64]
Parameters = dict[str, int]


class Peer(ABC):
    """An index that is built once and searched at different settings.

    Attributes:
        about: What was chosen when building it.
        main: The parameter that is doubled and bisected.
        held: A second parameter and its values, each of which is tried; as multiples of k.
        largest: Of the main parameter.
        build_seconds: What building took.
        megabytes: Size of its file (10⁶ bytes).
    """

    name: ClassVar[str]
    package: ClassVar[str] = "faiss"
    about: str
    main: str
    held: ClassVar[tuple[str, tuple[int, ...]] | None] = None
    largest: int

    def __init__(self, documents: Vectors, threads: int) -> None:
        start = time.perf_counter()
        self.build(documents, threads)
        self.build_seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            self.megabytes = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 1e6

    @classmethod
    def installed(cls) -> bool:
        """Whether its package is there."""
        return find_spec(cls.package) is not None

    @abstractmethod
    def build(self, documents: Vectors, threads: int) -> None:
        """Train and fill it."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write its file or files."""

    @abstractmethod
    def set(self, parameters: Parameters) -> None:
        """Set search parameters."""

    @abstractmethod
    def search(self, queries: Vectors, k: int) -> Rows:
        """Return (B, k) rows, on one thread."""


class _Faiss(Peer):
    factory: str
    index: Any

    def build(self, documents: Vectors, threads: int) -> None:
        """Train and fill it."""
        faiss.omp_set_num_threads(threads)
        self.index = faiss.index_factory(documents.shape[1], self.factory, faiss.METRIC_INNER_PRODUCT)
        self.index.train(documents)
        self.index.add(documents)

    def write(self, folder: Path) -> None:
        """Write its file or files."""
        faiss.write_index(self.index, str(folder / "index"))

    def set(self, parameters: Parameters) -> None:
        """Set search parameters."""
        for name, value in parameters.items():
            faiss.ParameterSpace().set_index_parameter(self.index, name, value)

    def search(self, queries: Vectors, k: int) -> Rows:
        """Return (B, k) rows, on one thread."""
        with one_thread():
            rows: Rows = self.index.search(queries, k)[1]
        return rows


class IvfFlat(_Faiss):
    """Inverted lists of the same number as the automatic choice's, trained as faiss does by default."""

    name = "faiss IVF-Flat"
    main = "nprobe"

    def __init__(self, documents: Vectors, threads: int) -> None:
        self.largest = int(2 ** round(np.log2(4 * np.sqrt(len(documents)))))
        self.factory = f"IVF{self.largest},Flat"
        self.about = f"`{self.factory}`"
        super().__init__(documents, threads)


class Hnsw(_Faiss):
    """A graph, in faiss."""

    name = "faiss HNSW"
    factory = "HNSW32"
    about = "`HNSW32`, efConstruction 40 (its default)"
    main, largest = "efSearch", 4096


class HnswLib(Peer):
    """A graph, by its authors."""

    name = package = "hnswlib"
    about = "M 32, ef_construction 100"
    main, largest = "ef", 4096

    def build(self, documents: Vectors, threads: int) -> None:
        """Train and fill it."""
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=documents.shape[1])
        self.index.init_index(max_elements=len(documents), M=32, ef_construction=100, random_seed=0)
        self.index.add_items(documents, num_threads=threads)

    def write(self, folder: Path) -> None:
        """Write its file or files."""
        self.index.save_index(str(folder / "index"))

    def set(self, parameters: Parameters) -> None:
        """Set search parameters."""
        self.index.set_ef(parameters["ef"])

    def search(self, queries: Vectors, k: int) -> Rows:
        """Return (B, k) rows, on one thread."""
        rows, _ = self.index.knn_query(queries, k=k, num_threads=1)
        return np.asarray(rows, dtype=np.int64)


class USearch(Peer):
    """A graph, in USearch."""

    name = package = "usearch"
    about = "connectivity 32, expansion_add 128 (its default), f32"
    main, largest = "expansion_search", 4096

    def build(self, documents: Vectors, threads: int) -> None:
        """Train and fill it."""
        from usearch.index import Index

        self.index = Index(ndim=documents.shape[1], metric="ip", dtype="f32", connectivity=32)
        self.index.add(np.arange(len(documents)), documents, threads=threads)

    def write(self, folder: Path) -> None:
        """Write its file or files."""
        self.index.save(str(folder / "index"))

    def set(self, parameters: Parameters) -> None:
        """Set search parameters."""
        self.index.expansion_search = parameters["expansion_search"]

    def search(self, queries: Vectors, k: int) -> Rows:
        """Return (B, k) rows, on one thread."""
        keys = self.index.search(queries, k, threads=1).keys
        return np.asarray(keys, dtype=np.int64).reshape(len(queries), k)


class ScaNN(Peer):
    """A tree with anisotropic codes, scored again."""

    name, package = "ScaNN", "scann"
    main = "leaves"
    held = ("reorder", (2, 4, 8, 16, 32))

    def build(self, documents: Vectors, threads: int) -> None:
        """Train and fill it."""
        import scann

        self.largest = int(2 * np.sqrt(len(documents)))
        self.about = f"{self.largest} leaves, score_ah(2, threshold 0.2), reorder"
        builder = scann.scann_ops_pybind.builder(documents, 10, "dot_product").set_n_training_threads(threads)
        tree = builder.tree(
            num_leaves=self.largest,
            num_leaves_to_search=self.largest // 20,
            training_sample_size=min(len(documents), 250_000),
        )
        scored = tree.score_ah(2, anisotropic_quantization_threshold=0.2)
        self.index = scored.reorder(100).build()

    def write(self, folder: Path) -> None:
        """Write its file or files."""
        self.index.serialize(str(folder))

    def set(self, parameters: Parameters) -> None:
        """Set search parameters."""
        self.setting = parameters

    def search(self, queries: Vectors, k: int) -> Rows:
        """Return (B, k) rows, on one thread."""
        setting = (k, self.setting["reorder"], self.setting["leaves"])
        if len(queries) == 1:
            return np.asarray(self.index.search(queries[0], *setting)[0], dtype=np.int64)[None]
        rows, _ = self.index.search_batched(queries, *setting)
        return np.asarray(rows, dtype=np.int64)


class Automatic(_Faiss):
    """What `index: {target_recall, k}` chooses; written and read again, as it is served."""

    name = "automatic"
    main, largest = "", 1
    about = ""

    def __init__(self, documents: Vectors, queries: Vectors, target: float, k: int, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        start = time.perf_counter()
        config = IndexConfig(target_recall=target, k=k, device="cpu")
        choice = choose(documents, queries, config, "cosine")
        self.choosing_seconds = time.perf_counter() - start
        if choice.curve is None:
            raise ValueError("an automatic choice has a curve")
        self.curve: Curve = choice.curve
        chosen = self.curve.settings[self.curve.chosen]
        self.build_seconds, self.megabytes = chosen.build_seconds, chosen.megabytes
        self.about = f"`{chosen.factory}`"
        with tempfile.TemporaryDirectory() as folder:
            choice.index.write(Path(folder, "index"))
            self.index = faiss.read_index(str(Path(folder, "index")))
        self.parameters = chosen.parameters
        self.set(self.parameters)


PEERS: tuple[type[Peer], ...] = (IvfFlat, ScaNN, Hnsw, HnswLib, USearch)
