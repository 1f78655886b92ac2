"""The text tower: a transformer, pooled and projected; its directory loads with `SentenceTransformer(path)`.

Legend: N texts, L tokens, H hidden size, D dimension.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load
from torch import Tensor, nn

from features.artifact import write_json
from features.config import Config
from features.errors import ConfigError
from towers.batch import Features, Ragged
from towers.encoders.encoder import Encoder, Side, Table, texts_of
from towers.encoders.hashing import MAX_CHARACTERS
from towers.encoders.pooling import Pooling, pool
from towers.encoders.sbert import DENSE, write_modules, write_settings
from towers.encoders.tokenizer import Algorithm, load_tokenizer, train_tokenizer

_CONFIG = "encoder.json"
_TOKENS = "tokens"


class Architecture(Config):
    """A BERT with random weights, and a tokenizer trained on the corpus."""

    tokenizer: Algorithm = Field("wordpiece", description="wordpiece, or byte-level bpe.")
    vocabulary: int = Field(8_000, ge=300, le=1_000_000, description="Largest number of tokens.")
    layers: int = Field(2, ge=1, le=48, description="Transformer layers.")
    hidden: int = Field(128, ge=8, le=4096, description="Hidden size.")
    heads: int = Field(2, ge=1, le=64, description="Attention heads.")
    intermediate: int = Field(512, ge=8, le=16_384, description="Size inside the feed-forward layers.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of hidden states and attention.")

    @model_validator(mode="after")
    def _divisible(self) -> "Architecture":
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class TextTowerConfig(Config):
    """A transformer over the query's text, or over the document's title and text."""

    kind: Literal["text"] = Field("text", description="A text tower.")
    path: Path | None = Field(
        None, description="Local model folder to start from; none builds `architecture`."
    )
    architecture: Architecture = Field(default=Architecture(), description="What to build without a path.")
    pooling: Pooling = Field("mean", description="mean, cls or max.")
    projector: bool = Field(True, description="Whether a linear layer maps the hidden size to the dimension.")
    max_length: int = Field(
        64, ge=3, le=8192, description="Tokens of a text that are read, special ones included."
    )
    prefix: str = Field("", max_length=1000, description='Put before each text, such as "query: ".')


class _EncoderFile(Config):
    config: TextTowerConfig
    dimension: int
    side: Side
    unit: bool


class TextEncoder(Encoder):
    """A text tower.

    Initial weights come from torch's global generator: call `torch.manual_seed` first.
    """

    def __init__(
        self,
        config: TextTowerConfig,
        dimension: int,
        side: Side,
        tokenizer: Any,
        transformer: Any,
        unit: bool,
    ) -> None:
        """Build the tower.

        Args:
            config: Pooling, projector, length and prefix.
            dimension: Size of the vectors.
            side: Which frame is read.
            tokenizer: A tokenizer of transformers.
            transformer: A model of transformers whose output has `last_hidden_state`.
            unit: Whether the saved model normalises; this module leaves that to `TwoTower`.

        Raises:
            ConfigError: If there is no projector and the hidden size is not the dimension.
        """
        super().__init__()
        self.config, self.dimension, self.side, self.unit = config, dimension, side, unit
        self.tokenizer, self.transformer = tokenizer, transformer
        hidden = _hidden_size(transformer)
        if not config.projector and hidden != dimension:
            raise ConfigError(
                f"the transformer's size {hidden} is not dimension {dimension}; set projector: true"
            )
        self.projector = nn.Linear(hidden, dimension) if config.projector else None

    def prepare(self, frame: Table) -> Features:
        """Tokenise the text of each row; a text without tokens becomes one unknown or padding token."""
        lists = self.tokenise(texts_of(frame, self.side))
        if not lists:
            return Features(ragged={_TOKENS: Ragged.from_lengths(*torch.empty(2, 0, dtype=torch.int64))})
        lengths = torch.tensor([len(tokens) for tokens in lists])
        return Features(
            ragged={_TOKENS: Ragged.from_lengths(torch.from_numpy(np.concatenate(lists)), lengths)}
        )

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, prefix and special tokens included; at least one each."""
        if not texts:
            return []
        read = [self.config.prefix + text[:MAX_CHARACTERS] for text in texts]
        encoded = self.tokenizer(read, truncation=True, max_length=self.config.max_length)["input_ids"]
        nothing = [self.tokenizer.unk_token_id or self.padding]
        return [tokens or nothing for tokens in encoded]

    @property
    def padding(self) -> int:
        """The token id that fills a row up; masked, so that its value changes nothing."""
        return self.tokenizer.pad_token_id or 0

    def forward(self, features: Features) -> Tensor:
        """Return (N, D) vectors; padding to the longest text of the batch changes none of them."""
        tokens = features.ragged[_TOKENS]
        lengths = tokens.lengths
        if len(tokens) == 0:
            return torch.zeros(0, self.dimension, device=lengths.device)
        longest = int(lengths.max())
        mask_NL = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
        tokens_NL = tokens.values.new_full(mask_NL.shape, self.padding).masked_scatter(mask_NL, tokens.values)
        return self.encode_tokens(tokens_NL, mask_NL)

    def encode_tokens(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Return (N, D) vectors of padded token ids; the mask is true where there is a token."""
        hidden_NLH = self.transformer(input_ids=tokens_NL, attention_mask=mask_NL.long()).last_hidden_state
        pooled = pool(hidden_NLH, mask_NL, self.config.pooling)
        vectors: Tensor = pooled if self.projector is None else self.projector(pooled)
        return vectors

    def save(self, directory: Path) -> None:
        """Write a folder that `load` and `SentenceTransformer` read."""
        directory.mkdir(parents=True, exist_ok=True)
        _quiet()
        self.transformer.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        write_modules(
            directory, self.config.pooling, _hidden_size(self.transformer), self.projector, unit=self.unit
        )
        write_settings(directory, self.config.max_length, self.config.prefix, unit=self.unit)
        file = _EncoderFile(config=self.config, dimension=self.dimension, side=self.side, unit=self.unit)
        write_json(directory / _CONFIG, file.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote, in evaluation mode."""
        file = _EncoderFile.model_validate_json((directory / _CONFIG).read_text(encoding="utf-8"))
        transformer = load_transformer(directory)
        encoder = cls(
            file.config, file.dimension, file.side, load_tokenizer(directory), transformer, file.unit
        )
        if encoder.projector is not None:
            weights = load((directory / DENSE).read_bytes())
            encoder.projector.load_state_dict(
                {name.removeprefix("linear."): w for name, w in weights.items()}
            )
        return encoder.eval()


def start_transformer(config: TextTowerConfig, texts: Sequence[str]) -> tuple[Any, Any]:
    """Return a tokenizer and a transformer: from the local folder, or built, with a tokenizer for the texts.

    Raises:
        ConfigError: If the folder is absent or holds no model.
    """
    if config.path is None:
        tokenizer = train_tokenizer(
            texts, config.architecture.tokenizer, config.architecture.vocabulary, config.max_length
        )
        return tokenizer, _build_bert(config, len(tokenizer))
    if not (config.path / "config.json").is_file():
        raise ConfigError(f"{config.path} is not a model folder (no config.json); nothing is downloaded")
    try:
        return load_tokenizer(config.path), load_transformer(config.path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the model in {config.path} cannot be loaded: {reason}") from error


def load_transformer(directory: Path) -> Any:
    """Return the float32 model of a local folder, from safetensors only."""
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    _quiet()
    settings = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    model: Any = MODEL_MAPPING[type(settings)]
    has_pooler = "add_pooling_layer" in inspect.signature(model).parameters
    return AutoModel.from_pretrained(
        directory,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        **({"add_pooling_layer": False} if has_pooler else {}),
    )


def _build_bert(config: TextTowerConfig, vocabulary: int) -> Any:
    from transformers import BertConfig, BertModel

    size = config.architecture
    settings = BertConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=config.max_length,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
    )
    return BertModel(settings, add_pooling_layer=False)


def _hidden_size(transformer: Any) -> int:
    return int(transformer.config.hidden_size)


def _quiet() -> None:
    from transformers.utils import logging

    disable: Any = logging.disable_progress_bar  # untyped
    disable()
