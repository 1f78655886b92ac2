"""The README is run: its logs, its configuration, its commands, its requests, its Python."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest
import yaml

from features.lake import ingest
from features.simulate import SimulateConfig, simulate
from pipelines.config import load_config
from pipelines.output import EXIT_CODES
from serving.api import ServeConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def sample_documents() -> list[dict[str, object]]:
    return [json.loads(line) for line in blocks("json")[0].splitlines()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clicks.csv` and `products.jsonl` under the README's column names, and its `my.yaml`."""
    folder = tmp_path_factory.mktemp("readme")
    simulate(folder / "shop", SimulateConfig(sessions=3000, documents=300))
    header = blocks("csv")[0].splitlines()[0].split(",")
    log = pd.read_parquet(folder / "shop" / "impressions.parquet")
    ours = ["impression_id", "query_text", "user_id", "timestamp", "doc_id", "position", "clicked"]
    log = log[ours].set_axis(header, axis=1)
    log.assign(click=log["click"].astype(int)).to_csv(folder / "clicks.csv", index=False)
    products = pd.read_json(folder / "shop" / "documents.jsonl.gz", lines=True)
    names = {"doc_id": "sku", "title": "name", "text": "about", "brand": "brand", "price": "price"}
    assert all(set(document) == set(names.values()) for document in sample_documents())
    products = products[list(names)].rename(columns=names)
    products.to_json(folder / "products.jsonl", orient="records", lines=True)
    (folder / "my.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    return folder


def run(block: str, folder: Path) -> str:
    """Run each line of a block, all of which must succeed; return what the last one said."""
    output = ""
    for line in block.splitlines():
        done = subprocess.run(line, shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        output = done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def trained(shop: Path) -> Path:
    """The same folder after the README's commands, each of which must succeed."""
    output = run(blocks("sh")[0], shop)
    assert re.search(r"train\s.*(cached|in the store)", output), output
    return shop


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[int]:
    """`twotower serve` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [shutil.which("twotower", path=ENVIRONMENT["PATH"]), "serve", "store", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=trained, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def test_the_smallest_log_of_the_readme_trains_and_answers(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    output = run(blocks("sh")[1], tmp_path)
    assert re.search(r"^towers$", output, flags=re.MULTILINE)
    assert len(re.findall(r"\bsku-\d{6}\b", output)) >= 10


def test_the_sample_log_and_the_sample_catalogue_are_of_one_shop(tmp_path: Path) -> None:
    for name, language in {"clicks.csv": "csv", "products.jsonl": "json", "my.yaml": "yaml"}.items():
        (tmp_path / name).write_text(blocks(language)[0], encoding="utf-8")
    config = load_config(tmp_path / "my.yaml", base=tmp_path)
    lake = ingest(config.source, tmp_path / "lake", config.ingest)
    assert lake.content["impressions"]["accepted"] == lake.content["impressions"]["input"] == 2
    assert lake.content["impressions"]["clicks"] == 1
    assert lake.content["documents"]["accepted"] == 2


def test_the_update_file_of_the_readme_is_what_the_configuration_asks_for() -> None:
    features = yaml.safe_load(blocks("yaml")[0])["source"]["documents"]["features"]
    named = re.search(r"`doc_id` and every feature of the configuration \(here (.*?)\)", TEXT)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1]) == features


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    sentence = TEXT[TEXT.index("A command ends with 0") :].split("`--json`", maxsplit=1)[0]
    assert [int(code) for code in re.findall(r"\b\d+\b", sentence)] == list(EXIT_CODES)


def test_the_requests_are_answered(served: int, trained: Path) -> None:
    lines = blocks("sh")[2].splitlines()
    known = json.loads((trained / "products.jsonl").read_text().splitlines()[0])["sku"]
    for line in lines:
        assert f"127.0.0.1:{ServeConfig().port}/" in line
        line = line.replace(f"127.0.0.1:{ServeConfig().port}", f"127.0.0.1:{served}").replace(
            "sku-000123", known
        )
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
        reply = json.loads(done.stdout)
        assert "error" not in reply, f"{line}\n{reply}"
        assert reply.get("ready") or reply.get("bundles") or len(reply["hits"]) == 3


def test_the_python_prints_three_hits(trained: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]],
        cwd=trained,
        env=ENVIRONMENT | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3"]


def test_every_block_that_can_be_run_is_run() -> None:
    languages = re.findall(r"^```(\w*)$", TEXT, flags=re.MULTILINE)
    assert [name for name in languages if name] == ["csv", "json", "yaml", "sh", "sh", "sh", "python"]


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
