"""The size and the habits of the simulated shop."""

from datetime import UTC, datetime, timedelta

from pydantic import Field

from features.config import Config
from features.shop.clicks import ClickConfig

END = datetime(2026, 4, 1, tzinfo=UTC)
"""Every log ends before this moment, so that equal configurations give equal files on any day."""


class SimulateConfig(Config):
    """The size and the habits of the simulated shop."""

    sessions: int = Field(80_000, ge=1, le=50_000_000, description="Searches; each shows one list.")
    documents: int = Field(4_000, ge=1, le=100_000, description="Listings, repeated ones included.")
    queries: int = Field(
        3_000, ge=1, le=200_000, description="Most distinct intents; each has several texts."
    )
    seed: int = Field(0, ge=0, description="Decides everything that is drawn.")
    results: int = Field(12, ge=1, le=100, description="Most documents in one list.")
    days: int = Field(30, ge=1, le=365, description="Length of the log, which ends on 2026-03-31 (UTC).")
    recent_share: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Last share of the log's time: cold documents appear, judged texts are asked.",
    )
    query_skew: float = Field(0.9, ge=0.0, le=3.0, description="Zipf exponent of the traffic over intents.")
    document_skew: float = Field(
        0.8, ge=0.0, le=3.0, description="Zipf exponent of the popularity of documents."
    )
    synonyms: float = Field(
        0.45, ge=0.0, le=1.0, description="Chance that a part of a query is not in shop words."
    )
    misspellings: float = Field(0.12, ge=0.0, le=1.0, description="Share of the traffic that is misspelled.")
    cold_share: float = Field(0.05, ge=0.0, lt=1.0, description="Share of documents that appear late.")
    duplicate_share: float = Field(
        0.03, ge=0.0, lt=1.0, description="Share of documents that repeat another."
    )
    classifier: float = Field(
        0.5, ge=0.0, le=1.0, description="Chance that the shop knows one wanted category of a query text."
    )
    exploration: float = Field(0.03, ge=0.0, le=1.0, description="Share of places given to random documents.")
    judged_queries: int = Field(4_000, ge=0, description="Most texts of the recent log that are judged.")
    unseen_queries: int = Field(500, ge=0, description="Most texts absent from the log that are judged.")
    clicks: ClickConfig = Field(ClickConfig(), description="How shoppers read a list.")

    @property
    def start(self) -> datetime:
        """When the log begins, UTC."""
        return END - timedelta(days=self.days)

    @property
    def recent_from(self) -> datetime:
        """When cold documents begin to appear, UTC; a time cut here sees none of them."""
        return END - timedelta(seconds=round(self.days * 86_400 * self.recent_share))
