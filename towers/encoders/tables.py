"""Embedding tables that several inputs, and both towers, may share.

Legend: N rows, V values of all rows together, W width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from towers.batch import Ragged
from towers.encoders.hashing import TextInput
from towers.encoders.vocabulary import UNKNOWN


class TextTable(nn.Module):
    """Embeddings of hashed words, with a learned importance that starts at inverse document frequency."""

    def __init__(self, importance: Tensor, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(len(importance), width))
        self.importance = nn.Parameter(importance)
        nn.init.normal_(self.embedding, std=width**-0.5)

    def forward(self, words: Ragged, dropout: float) -> Tensor:
        """Return (N, W) weighted sums, scaled so that many words are no longer than few; no words give zeros.

        Args:
            words: Buckets and weights of N texts.
            dropout: Share of words left out, in training only.
        """
        assert words.weights is not None  # hash_texts always gives them
        weights = functional.dropout(self.importance[words.values] * words.weights, dropout, self.training)
        total = functional.embedding_bag(
            words.values,
            self.embedding,
            words.offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        squares = weights.new_zeros(len(words)).index_add(0, words.rows(), weights.square())
        return total / (squares + 1e-6).sqrt().unsqueeze(1)


class BagTable(nn.Module):
    """Embeddings of known strings; in training some are taken for unknown, so that its row is trained."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))
        nn.init.normal_(self.embedding, std=width**-0.5)

    def forward(self, values: Ragged, dropout: float) -> Tensor:
        """Return (N, W) means; an empty list gives zeros.

        Args:
            values: Rows of the vocabulary.
            dropout: Share of values taken for unknown, in training only.
        """
        indices = values.values
        if self.training and dropout > 0:
            dropped = torch.rand(len(indices), device=indices.device) < dropout
            indices = indices.masked_fill(dropped, UNKNOWN)
        return functional.embedding_bag(
            indices, self.embedding, values.offsets, mode="mean", include_last_offset=True
        )


def first_importance(texts: Sequence[Ragged], config: TextInput) -> Tensor:
    """Return (buckets,) the inverse document frequency of each bucket, less for n-grams than for words.

    A bucket that no text has is 0: a word never seen has a random embedding, and would only add noise.
    """
    frequency = torch.zeros(config.buckets, dtype=torch.float64)
    for ragged in texts:  # a text holds each of its buckets once
        frequency += torch.bincount(ragged.values, minlength=config.buckets)
    total = sum(map(len, texts))
    importance = math.log(total + 1) - torch.log(frequency + 0.5) + 0.5
    importance[config.word_buckets :] *= config.ngram_weight
    return torch.where(frequency > 0, importance, 0.0).float()
