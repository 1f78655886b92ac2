"""Damage to every kind of file in a bundle: refused, or harmless; and nobody dies of it.

Without new digests no damage may pass at all, unless it is to a blank of the manifest. With new digests, as
only somebody on purpose would write them, what passes must answer validly: finite scores, ids of the
catalogue, each once, and the recorded answers to the canaries, which loading asks. Trial loads run in forks
of one process that has imported what they need, so that thousands take minutes.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.artifact import MANIFEST, SIGNATURE, Artifact, digest_of
from features.errors import ArtifactError, BundleError
from serving import trial
from serving.build import IndexConfig
from serving.bundle import load
from serving.export import export
from serving.retriever import Retriever
from serving.signing import SignConfig
from serving.store import Store
from towers.encoders.inputs import FeatureTowerConfig
from towers.two_tower import TowersConfig

TRIALS = """
import hashlib, os, sys
from pathlib import Path
import faiss, numpy, pyarrow.parquet, safetensors.numpy
import serving.faiss_file
from serving import trial

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        manifest = Path(line.strip(), "manifest.json").read_bytes()
        sys.argv = ["trial", line.strip(), "60", hashlib.sha256(manifest).hexdigest()]
        code = 1
        try:
            trial.main()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
KINDS = {
    "index": "index/index.faiss",
    "weights": "query/model.safetensors",
    "tower": "two_tower.json",
    "encoder": "document/encoder.json",
    "ids": "ids.json",
    "catalogue": "documents.parquet",
    "curve": "index/curve.json",
    "plot": "index/curve.png",
    "manifest": MANIFEST,
    "signature": SIGNATURE,
}
CLASSES = (b"0123456789", b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
QUERIES = ["red shoes", "blue scarf", "tea kettle", "茶壶", "lamp desk green", "nothing like it", "white"]


class Trials:
    """Trial loads, each in a fork of a process that imported everything once."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRIALS],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def outcome(self, path: Path) -> int:
        """The exit code of a trial of a bundle; a signal is negative."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    started = Trials()
    yield started
    started.close()


@pytest.fixture(scope="module")
def keys(make_keys, tmp_path_factory) -> tuple[SignConfig, Path]:
    secret, public = make_keys(tmp_path_factory.mktemp("keys"))
    return SignConfig(key=secret), public


@pytest.fixture(scope="module")
def bundles(make, shop: Path, keys: tuple[SignConfig, Path], tmp_path_factory) -> Callable[[str], Path]:
    """Signed bundles of the shop with an index of a kind, or chosen by measurement with its curve."""
    made: dict[str, Path] = {}
    text = {"width": 16, "word_buckets": 256, "ngram_buckets": 256}
    tower = FeatureTowerConfig.model_validate({"text": text, "constant": True})
    document = FeatureTowerConfig.model_validate({"text": text, "popularity": [{"column": "clicks"}]})
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "small"
    make.checkpoint(checkpoint, shop / "examples", TowersConfig(dimension=16, query=tower, document=document))

    def export_with(factory: str) -> Path:
        if factory not in made:
            root = tmp_path_factory.mktemp("bundles")
            config = (
                IndexConfig(k=5, target_recall=0.9)
                if factory == "auto"
                else IndexConfig(k=5, factory=factory)
            )
            made[factory] = export(shop / "examples", checkpoint, None, root, config, sign=keys[0]).path
        return made[factory]

    return export_with


def changes(sound: bytes, flips: int, cuts: int, rng: random.Random) -> Iterator[bytes]:
    """Damaged versions of a file: one byte changed, half of them near its ends; or cut off.

    Half of the bytes that are a digit or a letter become another one, since other bytes end a JSON document.
    """
    for number in range(flips):
        near = min(len(sound), 256)
        place = rng.choice([rng.randrange(near), len(sound) - 1 - rng.randrange(near)])
        place = place if number % 2 else rng.randrange(len(sound))
        now = sound[place]
        kind = next((kind for kind in CLASSES if now in kind), b"") if rng.random() < 0.5 else b""
        then = rng.choice([byte for byte in kind or range(256) if byte != now])
        yield sound[:place] + bytes([then]) + sound[place + 1 :]
    for _ in range(cuts):
        yield sound[: rng.randrange(len(sound))]


def with_new_digests(path: Path, name: str, damaged: bytes) -> Path:
    """Put a damaged file into a bundle, and into its manifest and name, what fits it."""
    (path / name).write_bytes(damaged)
    manifest = json.loads((path / MANIFEST).read_text())
    told = manifest["files"][name]
    told["bytes"], told["sha256"] = len(damaged), hashlib.sha256(damaged).hexdigest()
    return forged(path, manifest)


def forged(path: Path, manifest: dict[str, Any]) -> Path:
    """Write a manifest with the digest that fits it, and give the bundle the name that fits."""
    volatile = ("created_at", "seconds", "digest", "measured")
    content = {key: value for key, value in manifest["content"].items() if key not in volatile}
    files = {name: told for name, told in manifest["files"].items() if not told.get("measured")}
    kept = {key: value for key, value in manifest.items() if key not in volatile}
    manifest["digest"] = digest_of({**kept, "content": content, "files": files})
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path.rename(path.parent / manifest["digest"][:16])


def check_line(error: Exception) -> None:
    """A refusal is one line."""
    assert "\n" not in str(error)


def answers(path: Path) -> list[list[tuple[str, float]]]:
    """What a bundle answers; fails where that is no valid answer."""
    opened = load(path)
    retriever = Retriever(opened)
    found = []
    for text in QUERIES:
        hits = [(hit.doc_id, hit.score) for hit in retriever.search(text, k=8)]
        assert all(np.isfinite(score) for _, score in hits)
        assert all(doc_id in opened.rows for doc_id, _ in hits)
        assert len({doc_id for doc_id, _ in hits}) == len(hits)
        found.append(hits)
    return found


def damaged_as_it_lies(path: Path, name: str, public: Path, flips: int, cuts: int, seed: int) -> Counter[str]:
    """Damage a file and leave the digests alone."""
    seen: Counter[str] = Counter()
    sound = (path / name).read_bytes()
    expected = answers(path)
    for damaged in changes(sound, flips, cuts, random.Random(seed)):
        (path / name).write_bytes(damaged)
        try:
            load(path, "cpu", (public,))
        except BundleError as error:
            check_line(error)
            seen["refused"] += 1
        else:
            raise AssertionError(f"a signed bundle with a damaged {name} was opened")
        try:
            if name == MANIFEST:
                assert answers(path) == expected
                seen["harmless without keys"] += 1
        except BundleError as error:
            check_line(error)
            seen["refused without keys"] += 1
    (path / name).write_bytes(sound)
    assert answers(path) == expected
    return seen


def damaged_on_purpose(
    path: Path, name: str, trials: Trials, flips: int, cuts: int, seed: int
) -> Counter[str]:
    """Damage a file and give the bundle digests that fit."""
    seen: Counter[str] = Counter()
    base, expected = path, answers(path)
    sound, manifest = (path / name).read_bytes(), json.loads((path / MANIFEST).read_text())
    for damaged in changes(sound, flips, cuts, random.Random(seed)):
        path = with_new_digests(path, name, damaged)
        outcome = trials.outcome(path)
        if outcome != 0:
            seen["crashed in the trial" if outcome < 0 else "refused by the trial"] += 1
            continue
        trial._survived.add(Artifact.read(path).fingerprint)
        try:
            found = answers(path)
        except BundleError as error:
            check_line(error)
            seen["refused"] += 1
        else:
            seen["equal answers" if found == expected else "other, valid answers"] += 1
    (path / name).write_bytes(sound)
    path = forged(path, manifest)
    path.rename(base)
    return seen


@pytest.fixture
def copied(bundles: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(factory: str) -> Path:
        source = bundles(factory)
        return Path(shutil.copytree(source, tmp_path / source.name))

    return copy


def test_damage_is_refused_or_harmless(copied, keys, trials: Trials):
    """A few of each; the many are below."""
    path = copied("Flat")
    for name in (name for name in KINDS.values() if (path / name).exists()):
        seen = damaged_as_it_lies(path, name, keys[1], flips=8, cuts=3, seed=1)
        assert seen["refused"] == 11
    for name in ("index/index.faiss", "query/model.safetensors", "documents.parquet"):
        seen = damaged_on_purpose(path, name, trials, flips=4, cuts=1, seed=1)
        assert sum(seen.values()) == 5


@pytest.mark.crash
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_flips_and_two_hundred_cuts_of_every_kind_of_file(copied, keys, kind: str):
    path = copied("auto" if kind in ("curve", "plot") else "IVF4,SQ8")
    seen = damaged_as_it_lies(path, KINDS[kind], keys[1], flips=1_000, cuts=200, seed=2)
    assert seen["refused"] == 1_200
    if kind == "manifest":
        assert seen["refused without keys"] + seen["harmless without keys"] == 1_200
    print(f"\n{kind}: {dict(seen)}")


@pytest.mark.crash
@pytest.mark.parametrize(
    ("kind", "factory"),
    [
        *((kind, "Flat") for kind in ("index", "weights", "tower", "encoder", "ids", "catalogue")),
        *(("index", factory) for factory in ("HNSW8", "IVF4,SQ8", "PQ4x4fs,RFlat")),
        ("curve", "auto"),
        ("plot", "auto"),
    ],
)
def test_damage_with_new_digests_is_refused_or_answers_validly(
    copied, trials: Trials, kind: str, factory: str
):
    flips, cuts = (60, 15) if kind == "index" else (25, 8)
    seen = damaged_on_purpose(copied(factory), KINDS[kind], trials, flips, cuts, seed=3)
    assert sum(seen.values()) == flips + cuts
    print(f"\n{kind} {factory}: {dict(seen)}")


@pytest.mark.crash
def test_a_thousand_flips_and_two_hundred_cuts_of_the_pointer(shop: Path, tmp_path: Path):
    store = Store(tmp_path)
    shutil.copytree(shop / "bundles", store.bundles)
    champion = store.set_champion(store.bundle_ids()[0], "first")
    sound = store.pointer.read_bytes()
    seen: Counter[str] = Counter()
    for damaged in changes(sound, 1_000, 200, random.Random(4)):
        store.pointer.write_bytes(damaged)
        try:
            found = store.champion()
        except ArtifactError as error:
            check_line(error)
            seen["refused"] += 1
        else:
            assert found is not None
            assert found.bundle_id == champion.bundle_id
            seen["harmless"] += 1
    assert sum(seen.values()) == 1_200


def test_a_live_server_keeps_answering_from_the_old_bundle_whatever_is_promoted(
    bundles: Callable[[str], Path], tmp_path: Path, make
):
    store = Store(tmp_path)
    old = make.shop(tmp_path).path
    store.set_champion(old.name, "whole")
    other = bundles("IVF4,SQ8")
    rng = random.Random(5)
    with make.server(tmp_path) as http:
        make.wait_until(lambda: http.get("/readyz").status_code == 200)
        for name in ("index/index.faiss", "documents.parquet", "query/model.safetensors", MANIFEST):
            target = Path(shutil.copytree(other, store.bundles / other.name))
            sound = (target / name).read_bytes()
            place = rng.randrange(len(sound))
            (target / name).write_bytes(sound[:place] + bytes([sound[place] ^ 255]) + sound[place + 1 :])
            try:
                store.set_champion(other.name, "damaged")
            except BundleError:
                pass
            else:
                make.wait_until(lambda: http.get("/v1/bundle").json()["refused"] is not None)
            for text in QUERIES:
                reply = http.post("/v1/search", json={"text": text, "k": 5})
                assert reply.status_code == 200
                assert reply.json()["bundle_id"] == old.name
            store.set_champion(old.name, "back")
            shutil.rmtree(target)
