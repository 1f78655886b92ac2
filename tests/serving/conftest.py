"""A small shop made by hand, its examples and untrained towers, exported to a store and served for real."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pandas as pd
import pytest
import torch

from features.artifact import Artifact, publish
from features.text import normalise
from serving.api import ServeConfig, create_app
from serving.build import IndexConfig
from serving.bundle import Bundle, load
from serving.export import export
from serving.server import build_server
from serving.store import Store
from towers.encoders.hashing import TextInput
from towers.encoders.inputs import FeatureTowerConfig, HistoryInput
from towers.two_tower import TowersConfig, build_two_tower

COLOURS = ("red", "green", "blue", "white")
THINGS = ("running shoes", "wool scarf", "rain jacket", "tea kettle", "desk lamp")
XSS = "<img src=x onerror=\"document.title='stolen'\"> kettle & <b>cup</b>"
QUERIES = [
    "red shoes",
    "blue scarf",
    "rain jacket",
    "desk lamp",
    "tea kettle",
    "green lamp",
    "white shoes",
    "茶壶",
]


def catalogue() -> pd.DataFrame:
    pairs = [(f"{colour} {thing}", f"a {thing} in {colour}") for colour in COLOURS for thing in THINGS]
    pairs += [(XSS, "a title that is markup"), ("茶壶", "中国茶壶 🍵"), ("", "no title")]
    frame = pd.DataFrame(pairs, columns=["title", "text"])
    frame.insert(0, "doc_id", [f"d{row:02d}" for row in range(len(frame))])
    frame.loc[frame.index[-1], "doc_id"] = "shelf/9 ü"
    frame = frame.sort_values("doc_id", ignore_index=True)
    frame["image"] = pd.Series([None] * len(frame), dtype=object)
    frame["updated_at"] = pd.Series([pd.NaT] * len(frame), dtype="datetime64[us, UTC]")
    frame["content_key"] = frame["doc_id"]
    frame["impressions"], frame["clicks"], frame["ctr"] = 10, range(len(frame)), 0.1
    frame["sampling_probability"], frame["cold"] = 1 / len(frame), False
    return frame


def query_rows(kind: str, start: str) -> pd.DataFrame:
    histories = [[f"d{row:02d}", f"d{row + 5:02d}"] for row in range(len(QUERIES))]
    count = len(QUERIES)
    return pd.DataFrame(
        {
            "query_id": [f"{start}-{row}" for row in range(count)],
            "query_key": QUERIES if kind == "text" else [f"u{row}" for row in range(count)],
            "query_text": [normalise(text) for text in QUERIES] if kind == "text" else [None] * count,
            "history": [[] for _ in range(count)] if kind == "text" else histories,
            "user_id": [None] * count if kind == "text" else [f"u{row}" for row in range(count)],
            "timestamp": pd.date_range(start, periods=count, freq="h", tz="UTC"),
        }
    )


def write_examples(target: Path, kind: str = "text", documents: pd.DataFrame | None = None) -> Artifact:
    content = {
        "config": {"query": kind, "exclude_seen": kind == "history", "history_length": 4},
        "cut": "2026-01-02T00:00:00+00:00",
    }
    with publish(target, "examples", content) as staging:
        (catalogue() if documents is None else documents).to_parquet(staging / "documents.parquet")
        for split, start in (("train", "2026-01-01"), ("validation", "2026-01-03"), ("test", "2026-01-05")):
            query_rows(kind, start).to_parquet(staging / f"{split}.parquet")
    return Artifact.read(target, "examples")


def towers_config(kind: str = "text", similarity: str = "cosine") -> TowersConfig:
    text = TextInput(word_buckets=4096, ngram_buckets=4096)
    history = HistoryInput(text=text) if kind == "history" else None
    query = FeatureTowerConfig(text=text if kind == "text" else None, history=history, constant=True)
    document = FeatureTowerConfig.model_validate({"text": text, "popularity": [{"column": "clicks"}]})
    return TowersConfig(dimension=16, similarity=similarity, query=query, document=document)


def write_checkpoint(target: Path, examples: Path, config: TowersConfig, seed: int = 0) -> Artifact:
    documents = pd.read_parquet(examples / "documents.parquet")
    torch.manual_seed(seed)
    towers = build_two_tower(config, documents, pd.read_parquet(examples / "train.parquet"))
    with publish(target, "checkpoint", {}) as staging:
        towers.save(staging / "two_tower")
    return Artifact.read(target, "checkpoint")


def build_shop(
    root: Path, kind: str = "text", *, seed: int = 0, index: IndexConfig | None = None
) -> Artifact:
    write_examples(root / "examples", kind)
    write_checkpoint(root / "checkpoints" / str(seed), root / "examples", towers_config(kind), seed)
    return export(
        root / "examples", root / "checkpoints" / str(seed), None, root / "bundles", index or IndexConfig(k=5)
    )


@contextmanager
def serving(store: Path, config: ServeConfig | None = None) -> Iterator[httpx.Client]:
    """A real server on a free loopback port."""
    settings = config or ServeConfig(poll_seconds=0.05)
    server = build_server(create_app(store, settings), settings.drain, settings.trusted_proxies)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return False
    return True


def workers(parent: int) -> list[int]:
    """Ids of the processes that a parent started to do the work, oldest first."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The functions above, for tests that need a shop of their own."""
    return SimpleNamespace(
        catalogue=catalogue,
        examples=write_examples,
        checkpoint=write_checkpoint,
        towers_config=towers_config,
        shop=build_shop,
        server=serving,
        wait_until=wait_until,
        free_port=free_port,
        accepts=accepts,
        workers=workers,
        ended=ended,
    )


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """A store whose champion answers texts."""
    root = tmp_path_factory.mktemp("shop")
    Store(root).set_champion(build_shop(root).path.name, "first")
    return root


@pytest.fixture(scope="session")
def several(tmp_path_factory) -> Store:
    """A store of three bundles that answer texts."""
    root = tmp_path_factory.mktemp("several")
    for seed in range(3):
        build_shop(root, seed=seed)
    Store(root).set_champion(Store(root).bundle_ids()[0], "first")
    return Store(root)


@pytest.fixture(scope="session")
def cinema(tmp_path_factory) -> Path:
    """A store whose champion answers histories, and never returns what was seen."""
    root = tmp_path_factory.mktemp("cinema")
    Store(root).set_champion(build_shop(root, "history").path.name, "first")
    return root


@pytest.fixture(scope="session")
def bundle(shop: Path) -> Bundle:
    return load(Store(shop).bundles / Store(shop).bundle_ids()[0])


@pytest.fixture(scope="session")
def history_bundle(cinema: Path) -> Bundle:
    return load(Store(cinema).bundles / Store(cinema).bundle_ids()[0])


@pytest.fixture(scope="session")
def client(shop: Path) -> Iterator[httpx.Client]:
    with serving(shop) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        yield http
