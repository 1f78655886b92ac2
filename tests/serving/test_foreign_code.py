"""What JSON in a bundle may name: no code is run and no file elsewhere is opened, whatever it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.artifact import Artifact, publish
from features.errors import BundleError
from serving.build import IndexConfig
from serving.bundle import load
from serving.export import export
from towers.encoders.text import Architecture, TextTowerConfig
from towers.two_tower import TowersConfig

LOAD = """
import sys
from pathlib import Path

opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from features.errors import BundleError
from serving.bundle import load

try:
    load(Path(sys.argv[1]))
    print("opened")
except BundleError as error:
    print(f"refused: {error}")
print(*[path for path in opened if sys.argv[2] in path])
"""


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory, shop: Path, make) -> Path:
    root = tmp_path_factory.mktemp("texts")
    small = Architecture(vocabulary=300, layers=1, hidden=8, heads=1, intermediate=8)
    tower = TextTowerConfig(architecture=small, max_length=8)
    make.checkpoint(
        root / "checkpoint", shop / "examples", TowersConfig(dimension=8, query=tower, document=tower)
    )
    config = IndexConfig(k=5, factory="Flat")
    return export(shop / "examples", root / "checkpoint", None, root / "bundles", config).path


def changed(source: Path, target: Path, changes: dict[str, dict[str, Any]], more: dict[str, str]) -> Path:
    """A bundle with keys of JSON files changed and files added, all of it in its manifest."""
    with publish(target / "new", "bundle", dict(Artifact.read(source).content)) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        for name, keys in changes.items():
            document = json.loads((staging / name).read_text())
            (staging / name).write_text(json.dumps({**document, **keys}))
        for name, text in more.items():
            (staging / name).write_text(text)
    return (target / "new").rename(target / Artifact.read(target / "new").digest[:16])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"query/config.json": {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}},
        {"query/config.json": {"model_type": "code", "auto_map": {"AutoConfig": "code.Config"}}},
        {"query/tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]}}},
        {"query/tokenizer_config.json": {"tokenizer_class": "os.system"}},
        {"query/config.json": {"_name_or_path": "OUTSIDE", "architectures": ["OUTSIDE/code.Model"]}},
        {"query/tokenizer_config.json": {"tokenizer_file": "OUTSIDE/secret", "vocab_file": "OUTSIDE/secret"}},
        {"query/tokenizer_config.json": {"name_or_path": "OUTSIDE", "chat_template": "OUTSIDE/secret"}},
    ],
)
def test_json_that_names_code_or_paths_runs_and_reads_nothing(
    text_bundle: Path, tmp_path: Path, changes: dict[str, dict[str, Any]]
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("{}")
    (outside / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    told = json.loads(json.dumps(changes).replace("OUTSIDE", str(outside)))
    path = changed(text_bundle, tmp_path, told, {})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(outside)])}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), str(outside)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    outcome, opened = done.stdout.splitlines()[-2:] if done.stdout.count("\n") > 1 else (done.stdout, "")
    assert outcome.startswith(("opened", "refused: bundle"))
    assert opened == ""
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["query/code.py", "model.bin", "document/state.PKL", "index/hook.so"])
def test_code_and_pickles_are_no_part_of_a_bundle(bundle, tmp_path: Path, name: str):
    path = changed(bundle.artifact.path, tmp_path, {}, {name: ""})
    with pytest.raises(BundleError, match="code and pickles are no part of a bundle"):
        load(path)
