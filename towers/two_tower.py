"""A query tower and a document tower whose vectors meet in one score.

Legend: N rows, B queries, D dimension.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import pandas as pd
import torch
from pydantic import Field, model_validator
from safetensors.torch import load, save_file
from torch import Tensor, nn

from features.artifact import write_json
from features.config import Config
from towers.batch import Features
from towers.encoders.encoder import Encoder, Side, Table, texts_of
from towers.encoders.features import FeatureEncoder
from towers.encoders.fitted import fit
from towers.encoders.hashing import TextInput
from towers.encoders.inputs import FeatureTowerConfig
from towers.encoders.numbers import PopularityInput, Transform
from towers.encoders.text import TextEncoder, TextTowerConfig, start_transformer

TEMPERATURE_RANGE = (0.005, 10.0)
"""A learned temperature stays inside; below, one step could make every probability 0 or 1."""

_CONFIG = "two_tower.json"
_TEMPERATURE = "temperature.safetensors"
_EPSILON = 1e-6  # a zero vector stays zero, and its gradient finite

EncoderConfig = Annotated[FeatureTowerConfig | TextTowerConfig, Field(discriminator="kind")]


Similarity = Literal["cosine", "dot"]
"""How two vectors are compared, in training, index and serving alike."""


_POPULARITY = (
    PopularityInput(column="clicks", transform=Transform.LOG1P, start=0.1),
    PopularityInput(column="ctr", transform=Transform.LOGIT),
)


class TowersConfig(Config):
    """Both towers and how they are compared."""

    dimension: int = Field(64, ge=2, le=4096, description="Size of the vectors.")
    similarity: Similarity = Field("cosine", description="cosine or dot.")
    temperature: float = Field(
        0.05,
        ge=TEMPERATURE_RANGE[0],
        le=TEMPERATURE_RANGE[1],
        description="Divides scores in the loss, at first.",
    )
    learn_temperature: bool = Field(False, description="Whether training changes the temperature.")
    shared: bool = Field(
        True,
        description="Feature towers share the tables of equal name (text, ids); text towers everything.",
    )
    query: EncoderConfig = Field(
        default=FeatureTowerConfig(text=TextInput(), constant=True), description="The query tower."
    )
    document: EncoderConfig = Field(
        default=FeatureTowerConfig(text=TextInput(), popularity=_POPULARITY),
        description="The document tower.",
    )

    @model_validator(mode="after")
    def _towers_agree(self) -> "TowersConfig":
        if self.shared and self.query.kind != self.document.kind:
            raise ValueError(
                f"shared towers must be of one kind; they are {self.query.kind} and {self.document.kind}"
            )
        query, document = self.query, self.document
        if self.shared and isinstance(query, TextTowerConfig) and isinstance(document, TextTowerConfig):
            alike = query.model_copy(update={"prefix": document.prefix})
            if alike != document:
                raise ValueError(
                    "shared text towers may differ in prefix only; make the rest equal or unshare them"
                )
        if isinstance(query, FeatureTowerConfig) and query.popularity:
            raise ValueError(
                "query.popularity belongs under document.popularity; the query has constant: true"
            )
        if isinstance(document, FeatureTowerConfig) and document.history:
            raise ValueError(
                "document.history is not possible: a document has no history; it belongs under query"
            )
        popular = isinstance(document, FeatureTowerConfig) and document.popularity
        if popular and isinstance(query, FeatureTowerConfig) and not query.constant:
            raise ValueError(
                "document.popularity is multiplied by the query's constant; set query.constant: true"
            )
        return self


class TwoTower(nn.Module):
    """Two encoders and a temperature."""

    def __init__(self, config: TowersConfig, query: Encoder, document: Encoder) -> None:
        super().__init__()
        self.config = config
        self.query = query
        self.document = document
        start = torch.tensor(_to_free(config.temperature), dtype=torch.float32)
        self._free_temperature = nn.Parameter(start) if config.learn_temperature else None

    @property
    def dimension(self) -> int:
        """Size of the vectors."""
        return self.config.dimension

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.config.similarity

    @property
    def temperature(self) -> Tensor:
        """Scalar that divides scores in the loss; a learned one stays inside `TEMPERATURE_RANGE`."""
        if self._free_temperature is None:
            return torch.tensor(self.config.temperature, device=next(self.parameters()).device)
        low, high = map(math.log, TEMPERATURE_RANGE)
        return torch.exp(low + (high - low) * torch.sigmoid(self._free_temperature))

    def prepare_queries(self, frame: Table) -> Features:
        """Turn rows of a query frame into inputs on the CPU; see `Encoder.prepare`."""
        return self.query.prepare(frame)

    def prepare_documents(self, frame: pd.DataFrame) -> Features:
        """Turn rows of a document frame into inputs on the CPU; see `Encoder.prepare`."""
        return self.document.prepare(frame)

    def encode_queries(self, features: Features) -> Tensor:
        """Return (N, D) float32 vectors; of unit length under cosine."""
        return self.comparable(self.query(features))

    def encode_documents(self, features: Features) -> Tensor:
        """Return (N, D) float32 vectors; of unit length under cosine."""
        return self.comparable(self.document(features))

    def score(self, query_BD: Tensor, document_ND: Tensor) -> Tensor:
        """Return (B, N) float32 inner products of encoded queries and documents, before the temperature."""
        with torch.autocast(query_BD.device.type, enabled=False):
            return query_BD.float() @ document_ND.float().T

    def comparable(self, vectors: Tensor) -> Tensor:
        """Return an encoder's output as the similarity compares it: float32, of unit length under cosine."""
        vectors = vectors.float()
        if self.similarity == "cosine":
            return nn.functional.normalize(vectors, dim=1, eps=_EPSILON)
        return vectors

    def save(self, directory: Path) -> None:
        """Write `query/`, `document/` and `two_tower.json` into a directory, which is created."""
        directory.mkdir(parents=True, exist_ok=True)
        self.query.save(directory / "query")
        self.document.save(directory / "document")
        write_json(directory / _CONFIG, self.config.model_dump(mode="json"))
        if self._free_temperature is not None:
            save_file({"temperature": self._free_temperature.detach()}, directory / _TEMPERATURE)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote: bit-identical weights, in evaluation mode."""
        config = TowersConfig.model_validate_json((directory / _CONFIG).read_text(encoding="utf-8"))
        query = _class_of(config.query).load(directory / "query")
        document = _class_of(config.document).load(directory / "document")
        if config.shared:
            _share(query, document)
        towers = cls(config, query, document)
        if towers._free_temperature is not None:
            weights = load((directory / _TEMPERATURE).read_bytes())
            towers._free_temperature.data.copy_(weights["temperature"])
        return towers.eval()


def build_two_tower(config: TowersConfig, documents: pd.DataFrame, queries: pd.DataFrame) -> TwoTower:
    """Build untrained towers, with vocabularies and scales from these frames only.

    Initial weights come from torch's global generator: call `torch.manual_seed` first.

    Args:
        config: Both towers.
        documents: The catalogue with statistics from before the cut (`documents.parquet` of examples).
        queries: The training queries (`train.parquet` of examples).

    Raises:
        ConfigError: If a frame lacks a column that the configuration names.
        SchemaError: If a value cannot be an input.
    """
    frames = {Side.QUERY: queries, Side.DOCUMENT: documents}
    document = _build_encoder(config, Side.DOCUMENT, frames, None)
    query = _build_encoder(config, Side.QUERY, frames, document if config.shared else None)
    if isinstance(query, FeatureEncoder) and isinstance(document, FeatureEncoder) and config.shared:
        texts = [*query.texts(queries), *document.texts(documents)]
        query.weigh_words(texts)
        document.weigh_words(texts)
    return TwoTower(config, query, document)


def _build_encoder(
    config: TowersConfig, side: Side, frames: Mapping[Side, pd.DataFrame], partner: Encoder | None
) -> Encoder:
    """Return one tower; what it shares is taken from `partner`, where there is one."""
    settings = config.query if side is Side.QUERY else config.document
    if isinstance(settings, TextTowerConfig):
        encoder: Encoder = _build_text_encoder(config, settings, side, frames)
        if partner is not None:
            _share(encoder, partner)
        return encoder
    shared = partner if isinstance(partner, FeatureEncoder) else None
    known = {} if shared is None else shared.fitted.vocabularies
    fitted = fit(settings, side, frames[side], frames[Side.DOCUMENT], known)
    tables = {} if shared is None else dict(shared.tables.items())
    built = FeatureEncoder(settings, config.dimension, side, fitted, config.temperature, tables)
    built.weigh_words(built.texts(frames[side]))
    return built


def _build_text_encoder(
    config: TowersConfig, settings: TextTowerConfig, side: Side, frames: Mapping[Side, pd.DataFrame]
) -> TextEncoder:
    read = list(Side) if config.shared else [side]
    texts = [text for whose in read for text in dict.fromkeys(texts_of(frames[whose], whose))]
    tokenizer, transformer = start_transformer(settings, texts)
    return TextEncoder(
        settings, config.dimension, side, tokenizer, transformer, config.similarity == "cosine"
    )


def _share(query: Encoder, document: Encoder) -> None:
    """Make the query tower use the document tower's weights where the two share them."""
    if isinstance(query, FeatureEncoder) and isinstance(document, FeatureEncoder):
        for name in query.tables.keys() & document.tables.keys():
            query.tables[name] = document.tables[name]
    elif isinstance(query, TextEncoder) and isinstance(document, TextEncoder):
        query.tokenizer, query.transformer = document.tokenizer, document.transformer
        query.projector = document.projector


def _class_of(config: FeatureTowerConfig | TextTowerConfig) -> type[FeatureEncoder] | type[TextEncoder]:
    return FeatureEncoder if isinstance(config, FeatureTowerConfig) else TextEncoder


def _to_free(temperature: float) -> float:
    """Return the number whose image under the sigmoid of `TwoTower.temperature` is `temperature`."""
    low, high = map(math.log, TEMPERATURE_RANGE)
    share = min(max((math.log(temperature) - low) / (high - low), 1e-4), 1 - 1e-4)
    return math.log(share) - math.log1p(-share)
