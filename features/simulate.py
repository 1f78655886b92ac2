"""A shop with known relevance: a click log and a catalogue such as a user brings, and the truth behind them.

What is modelled: Zipf traffic over what shoppers want and a Zipf popularity of listings; the words of the
catalogue against those of shoppers (synonyms, short brand names, other scripts, misspellings, word order,
needs that name no category); a ranker of middling quality that decides what is shown
(`features.shop.ranker`); a cascade click model with position bias, satisfaction and accidental clicks
(`features.shop.clicks`); longer visits after clicks on relevant listings; listings that appear late, and
listings that repeat others.

What is not: shoppers have no tastes of their own (a user id only groups lists), one list is one search
without further pages or purchases, prices and ratings change nothing, nothing drifts but the late listings,
and the words are a few hundred, so that what a model reaches here is no forecast for a real shop.

Files of a simulation:

- `impressions.parquet`: one row for each shown document, by time: impression_id, query_id (equal for equal
  texts), query_text, user_id, timestamp (UTC), doc_id, position (1-based), clicked, dwell_ms (null where not
  clicked).
- `documents.jsonl.gz`: one listing a line: doc_id, title, text, category, brand, attributes, price, rating,
  updated_at.
- `qrels.parquet`: query_text, doc_id, relevance (1 to 3): **every** document of that grade in the whole
  catalogue, late and repeated ones included, for the judged texts. These are distinct texts asked in the
  last part of the log (`recent_share`), at most `judged_queries`, each alike, and at most `unseen_queries`
  texts that were never asked.
- `truth/documents.parquet`: doc_id, popularity, quality, cold, copy_of.
- `truth/queries.parquet`: query_text, kind, misspelled, reworded, asked (lists in the log), judged.
- `truth/positions.parquet`: position, examination (mean chance that the place was looked at), lists.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.artifact import Artifact, publish
from features.errors import ArtifactError, ConfigError
from features.shop import files
from features.shop.catalogue import build_catalogue
from features.shop.clicks import ATTRACTION
from features.shop.config import END, SimulateConfig
from features.shop.intents import draw_intents
from features.shop.log import Searches, Shop, draw_searches, pages
from features.shop.wording import QueryTexts, word_intents

__all__ = ["SimulateConfig", "simulate"]


def simulate(target: Path, config: SimulateConfig) -> Artifact:
    """Write a simulated shop: log, catalogue, qrels and truth, as the module describes.

    Equal configurations give equal files, byte for byte, with equal library versions.

    Args:
        target: The directory to create, an artifact of kind `simulation`.
        config: Size, habits and seed.

    Raises:
        ConfigError: If the target is there already and is anything but a simulated shop, whole and alone.
    """
    _refuse_to_replace(target)
    rng = np.random.default_rng(config.seed)
    shop = _draw_shop(config, rng)
    searches = draw_searches(shop.texts, config, rng)
    judged = _judged(shop.texts, searches, config, rng)
    content: dict[str, object] = {
        "config": config.model_dump(mode="json"),
        "from": config.start.isoformat(),
        "to": END.isoformat(),
        "recent_from": config.recent_from.isoformat(),
        "attraction": list(ATTRACTION),
    }
    with publish(target, "simulation", content) as directory:
        (directory / "truth").mkdir()
        files.write_documents(directory / "documents.jsonl.gz", shop.catalogue, config, rng)
        files.write_document_truth(directory / "truth" / "documents.parquet", shop.catalogue)
        content["log"] = files.write_impressions(
            directory, shop, searches, pages(shop, searches, config, rng)
        )
        content["qrels"] = files.write_qrels(directory / "qrels.parquet", shop, judged)
        files.write_query_truth(directory / "truth" / "queries.parquet", shop, searches, judged)
    return Artifact.read(target, "simulation")


def _refuse_to_replace(target: Path) -> None:
    """Keep what a user has in a folder; an earlier simulation alone makes room for the next."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        Artifact.read(target, "simulation")
    except (ArtifactError, OSError) as error:
        raise ConfigError(
            f"{target} is there already and is not a simulated shop alone ({error}), which would be deleted; "
            "name a folder that does not exist"
        ) from None


def _draw_shop(config: SimulateConfig, rng: np.random.Generator) -> Shop:
    catalogue = build_catalogue(
        config.documents,
        rng,
        duplicate_share=config.duplicate_share,
        cold_share=config.cold_share,
        popularity_skew=config.document_skew,
    )
    intents = draw_intents(config.queries, catalogue, rng)
    texts = word_intents(
        intents,
        catalogue,
        rng,
        skew=config.query_skew,
        synonyms=config.synonyms,
        misspellings=config.misspellings,
    )
    return Shop(catalogue=catalogue, intents=intents, texts=texts)


def _judged(
    texts: QueryTexts, searches: Searches, config: SimulateConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the texts to judge: of those asked in the recent part each alike, of the others by traffic."""
    recent = np.unique(searches.text[searches.time >= round(config.recent_from.timestamp() * 1_000_000)])
    seen = rng.permutation(recent)[: config.judged_queries]
    traffic = texts.traffic.copy()
    traffic[searches.text] = 0.0
    unseen = min(config.unseen_queries, int((traffic > 0).sum()))
    never = (
        rng.choice(len(texts), size=unseen, replace=False, p=traffic / traffic.sum()) if unseen else seen[:0]
    )
    return np.sort(np.concatenate([seen, never]))
