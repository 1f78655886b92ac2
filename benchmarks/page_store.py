"""A store for benchmarks/page.py: the simulated shop's catalogue, and towers as they are before training.

Training changes what is found and not how long it takes, so none is done. Documents, their fields, BM25, the
index and the bundle's checks are what a trained store has.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from features.artifact import publish
from features.examples import ExamplesConfig, build_examples
from features.lake import IngestConfig, ingest
from features.readers.columnar import ColumnarSource
from features.shop.config import SimulateConfig
from features.simulate import simulate
from serving.build import IndexConfig
from serving.export import export
from serving.store import Store
from towers.encoders.inputs import FeatureTowerConfig
from towers.two_tower import TowersConfig, build_two_tower

DIMENSION = 128
_LOG = {"sessions": 4_000, "queries": 1_000, "judged_queries": 0, "unseen_queries": 0}  # for canaries only
_FEATURES = ("category", "brand", "attributes", "price", "rating")


def make(store: Path, documents: int) -> float:
    """Make a store whose champion has so many documents.

    Returns:
        Seconds that it took.
    """
    started = time.perf_counter()
    store.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store) as scratch:
        work = Path(scratch)
        size = SimulateConfig.model_validate({**_LOG, "documents": documents})
        data = simulate(work / "data", size).path
        source = {"path": data / "impressions.parquet", "format": "columnar"}
        catalogue = {"path": data / "documents.jsonl.gz", "features": list(_FEATURES)}
        columnar = ColumnarSource.model_validate({**source, "documents": catalogue})
        lake = ingest(columnar, work / "lake", IngestConfig()).path
        examples = build_examples(lake, work / "examples", ExamplesConfig(query="text")).path
        checkpoint = _untrained(work / "checkpoint", examples)
        bundle = export(examples, checkpoint, None, store / "bundles", IndexConfig(factory="Flat"))
        Store(store).set_champion(bundle.path.name, "benchmark")
    return time.perf_counter() - started


def _untrained(target: Path, examples: Path) -> Path:
    """Write a checkpoint of towers with the inputs of configs/shop.yaml and random weights."""
    torch.manual_seed(0)
    query = FeatureTowerConfig.model_validate({"text": {}, "hidden": [DIMENSION]})
    inputs = {
        "categories": [{"column": name} for name in ("category", "brand", "attributes")],
        "numbers": [{"column": "price", "transform": "log1p"}, {"column": "rating"}],
    }
    document = FeatureTowerConfig.model_validate({"text": {}, "hidden": [DIMENSION], **inputs})
    config = TowersConfig(dimension=DIMENSION, query=query, document=document)
    documents, train = (pd.read_parquet(examples / f"{name}.parquet") for name in ("documents", "train"))
    with publish(target, "checkpoint", {}) as staging:
        build_two_tower(config, documents, train).save(staging / "two_tower")
    return target
