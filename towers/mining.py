"""Hard negatives from the current model's own index.

1. `encode_corpus`  every document once, by the weights of now, into a faiss index;
2. `mine`           each example's query searched in it, known positives and suspects refused;
3. `Miner`          a table of what was found, from which each step draws; refreshed for the steps ahead.

Shapes: E examples, Q distinct queries, D documents, K ranks, M candidates kept.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.errors import ConfigError, TrainingError
from towers.batch import Features
from towers.checkpoint import weights_of
from towers.data import Ints, TrainingData
from towers.distributed import encode_together
from towers.negatives import excluded_own
from towers.sources import MinedSource
from towers.step import Inputs
from towers.two_tower import TwoTower

Vectors = NDArray[np.float32]

_ROWS_AT_ONCE = 4096
_UNIT_TOLERANCE = 1e-3


class Miner:
    """What was mined for the steps ahead.

    Attributes:
        examples: (E,) the examples of the current window, ascending.
        documents: (E, M) their candidates, best first, rows in the catalogue; -1 where there are fewer.
        weights: SHA-256 of the weights that ranked them; empty before the first mining.
    """

    def __init__(self, data: TrainingData, inputs: Inputs, config: MinedSource) -> None:
        """Prepare; nothing is mined yet."""
        self.config = config
        self.examples: Ints = np.empty(0, dtype=np.int64)
        self.documents: Ints = np.empty((0, config.pool), dtype=np.int64)
        self.weights = ""
        self._data = data
        self._inputs = inputs
        self._corpus: tuple[str, Corpus] | None = None

    def window(self, step: int, length: int) -> range:
        """Return the steps of the window that begins with a step; nothing where none does.

        A window ends with the stage. Of a stage that goes on after its length, the rest of it is a window.

        Args:
            step: Counted from 0 in the stage.
            length: Of the stage, in steps.
        """
        every = self.config.refresh_every
        if step % every != 0 and step != length:
            return range(0)
        end = (step // every + 1) * every
        return range(step, min(end, length) if step < length else end)

    def refresh(self, model: TwoTower, examples: Ints) -> bool:
        """Mine for the examples of the window ahead; the model keeps its mode and no random state moves.

        Args:
            model: The current towers.
            examples: Those that the window's batches hold, in any order, repeated or not.

        Returns:
            Whether anything had to be mined: not where the weights are those of the last mining and the
            examples were all in it.

        Raises:
            ConfigError: If `score_share` is set and scores are not cosines, or the index cannot be built.
            TrainingError: If a vector is not finite, or not of unit length where it should be.
        """
        examples = np.unique(examples)
        weights = weights_digest(model)
        if weights == self.weights and np.isin(examples, self.examples, assume_unique=True).all():
            return False
        if self._corpus is None or self._corpus[0] != weights:
            self._corpus = weights, Corpus(model, self._inputs.documents, self.config)
        self.documents = mine(model, self._corpus[1], self._data, self._inputs.queries, examples)
        self.examples, self.weights = examples, weights
        return True

    def draw(self, rows: Ints, random: np.random.Generator) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Draw `per_query` of each example's candidates without replacement, or as many as there are.

        Args:
            rows: (B,) examples, all of them mined.
            random: Decides.

        Returns:
            The documents, the position in `rows` of each (ascending), and the chance that each was drawn.

        Raises:
            TrainingError: If an example was not mined.
        """
        place = np.searchsorted(self.examples, rows)
        if len(rows) and (
            place.max() >= len(self.examples) or not np.array_equal(self.examples[place], rows)
        ):
            raise TrainingError("a batch holds examples that were not mined; refresh before drawing")
        pool_BM = self.documents[place]
        size_B = (pool_BM >= 0).sum(axis=1)
        key_BM = np.where(pool_BM >= 0, random.random(pool_BM.shape), np.inf)
        chosen_Bm = np.argsort(key_BM, axis=1, kind="stable")[:, : self.config.per_query]
        drawn_Bm = np.take_along_axis(pool_BM, chosen_Bm, axis=1)
        owner, column = np.nonzero(drawn_Bm >= 0)
        chance = np.minimum(self.config.per_query / np.maximum(size_B, 1), 1.0)[owner]
        return drawn_Bm[owner, column], owner, chance

    def state_dict(self) -> dict[str, Tensor]:
        """Return the table and the weights' digest as tensors."""
        return {
            "examples": torch.from_numpy(self.examples.copy()),
            "documents": torch.from_numpy(self.documents.copy()),
            "weights": torch.tensor(list(bytes.fromhex(self.weights)), dtype=torch.uint8),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` returned."""
        self.examples = state["examples"].numpy().copy()
        self.documents = state["documents"].numpy().copy()
        self.weights = bytes(state["weights"].tolist()).hex()


class Corpus:
    """The corpus as some weights encode it, in an index.

    Attributes:
        vectors: (D, dimension).
        size: D.
    """

    def __init__(self, model: TwoTower, documents: Features, config: MinedSource) -> None:
        """Encode and index every document.

        Raises:
            ConfigError: If `score_share` is set and the similarity is not cosine, or faiss refuses.
            TrainingError: If a vector is not finite, or not of unit length under cosine.
        """
        self.config = config
        require_cosine(config, model.similarity)
        self._normalised = model.similarity == "cosine"
        self.vectors = self.check(encode_all(model, model.encode_documents, documents))
        self.size = len(self.vectors)
        with _faiss_threads():
            self._index = self._build()

    def _build(self) -> Any:
        try:
            index = faiss.index_factory(
                self.vectors.shape[1], self.config.factory, faiss.METRIC_INNER_PRODUCT
            )
            if not index.is_trained:
                index.train(self.vectors)
            index.add(self.vectors)
            if faiss.try_extract_index_ivf(index) is not None:
                faiss.ParameterSpace().set_index_parameter(index, "nprobe", self.config.nprobe)
        except RuntimeError as error:
            reason = str(error).strip().rsplit("\n", maxsplit=1)[-1]
            raise ConfigError(
                f"negatives.mined.factory {self.config.factory!r} cannot index "
                f"{len(self.vectors)} documents: {reason}; use Flat"
            ) from None
        return index

    def check(self, vectors: Vectors) -> Vectors:
        """Return vectors that scores of this corpus may be made of.

        Raises:
            TrainingError: If one is not finite, or neither of unit length nor zero under cosine.
        """
        norm = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(norm).all():
            raise TrainingError(
                "the towers encode something as a vector that is not finite; nothing is mined"
            )
        if self._normalised and (np.abs(norm[norm > 0] - 1) > _UNIT_TOLERANCE).any():
            raise TrainingError("the towers' vectors are not of unit length, so their scores are no cosines")
        return vectors

    def search(self, query_QE: Vectors) -> tuple[Vectors, Ints]:
        """Return scores and rows of the best documents, (Q, K); -1 where an index finds fewer.

        K is `depth`, or every document of a smaller corpus. Equal scores are ordered by row.
        """
        with _faiss_threads():
            score_QK, row_QK = self._index.search(query_QE, min(self.config.depth, self.size))
        score_QK[row_QK < 0] = -np.inf
        order = np.lexsort((row_QK, -score_QK), axis=1)
        return np.take_along_axis(score_QK, order, axis=1), np.take_along_axis(row_QK, order, axis=1)


def require_cosine(config: MinedSource, similarity: str) -> None:
    """Assert that a share of the positive's score means something.

    Raises:
        ConfigError: If `score_share` is set and scores are not cosines.
    """
    if config.score_share is not None and similarity != "cosine":
        raise ConfigError(
            f"negatives.mined.score_share compares cosines, but towers.similarity is {similarity}; "
            "set score_share to null"
        )


def mine(model: TwoTower, corpus: Corpus, data: TrainingData, queries: Features, examples: Ints) -> Ints:
    """Find hard negatives of examples.

    A candidate is refused when it has the content of the positive, was clicked for the query before the cut,
    or scores more than `score_share` of the positive (see `MinedSource`). Of the others the first `skip_top`
    are passed over and the next `pool` kept.

    Args:
        model: The towers that encoded the corpus.
        corpus: The documents.
        data: The examples' queries, positives and known positives.
        queries: Prepared queries, to which `data.query` points.
        examples: (E,) which examples.

    Returns:
        (E, pool) rows in the catalogue, best first, -1 where there are fewer.
    """
    config = corpus.config
    distinct, place = np.unique(data.query[examples], return_inverse=True)
    chosen = queries.take(torch.from_numpy(distinct))
    query_QE = corpus.check(encode_all(model, model.encode_queries, chosen))
    score_QK, row_QK = corpus.search(query_QE)
    found = np.full((len(examples), config.pool), -1, dtype=np.int64)
    for start in range(0, len(examples), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows, query = examples[part], place[part]
        row_EK, score_EK = row_QK[query], score_QK[query]
        positive = data.document[rows]
        refused_EK = (row_EK < 0) | excluded_own(
            data.query_key[rows], positive, np.maximum(row_EK, 0), data.catalogue
        )
        if config.score_share is not None:
            own_E = np.einsum("ed,ed->e", query_QE[query], corpus.vectors[positive])
            refused_EK |= score_EK > np.minimum(config.score_share * own_E, own_E)[:, None]
        found[part] = _first_allowed(row_EK, refused_EK, config.skip_top, config.pool)
    return found


def _first_allowed(row_EK: Ints, refused_EK: NDArray[np.bool_], skip: int, count: int) -> Ints:
    rank_EK = np.cumsum(~refused_EK, axis=1) - 1 - skip
    kept_EK = ~refused_EK & (rank_EK >= 0) & (rank_EK < count)
    found = np.full((len(row_EK), count), -1, dtype=np.int64)
    example, place = np.nonzero(kept_EK)
    found[example, rank_EK[example, place]] = row_EK[example, place]
    return found


def encode_all(model: TwoTower, encode: Any, features: Features) -> Vectors:
    """Encode prepared rows in evaluation mode, (N, dimension) on the CPU; the model's mode is put back."""
    device = next(model.parameters()).device
    training, every = model.training, torch.arange(len(features))
    model.eval()
    try:
        vectors = encode_together(encode, features, every, width=model.dimension, device=device)
    finally:
        model.train(training)
    return np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights_of(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _faiss_threads() -> Iterator[None]:
    """Let faiss use as many threads as torch does, since the number can change its last digits."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
