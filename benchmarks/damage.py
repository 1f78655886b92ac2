r"""Count what damage under digests that fit passes the checks of loading, and what further checks would find.

    OMP_NUM_THREADS=1 python benchmarks/damage.py work/shop --flips 200

The store's examples and checkpoint are exported with each index. One byte of a file is changed at a time, and
size, SHA-256, digest and name of the bundle are made to fit, as only somebody on purpose would. Each damaged
bundle is tried and opened in a fork. One that opens answers probing queries, which are none of its canaries:
`equal` is the same ids in the same order with scores within 1e-3 of the largest, and all else is `other`. Of
those, it is counted what would have been told by more canaries, and by encoding documents again and comparing
them with the vectors in the index: so many of them, or all.

Prints one table; the byte positions are drawn with a fixed seed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - the forks inherit it, and so does all below
import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401

from features.artifact import MANIFEST, Artifact, digest_of
from features.errors import BundleError
from pipelines.report import markdown
from serving import canary, trial
from serving.build import IndexConfig
from serving.bundle import Opened, open_bundle
from serving.encode import encode_documents
from serving.export import export
from serving.index import Neighbours
from serving.provenance import HeldOut
from serving.subsets import Rows
from serving.vectors import Vectors

FACTORIES = ("Flat", "SQ8", "IVF64,SQ8", "HNSW32", "IVF64,PQ32x4fsr,RFlat")
FILES = ("index/index.faiss", "query/model.safetensors", "document/model.safetensors", "documents.parquet")
PROBES, DEPTH = 300, 10
CANARIES, SAMPLES = (32, 128), (256, 0)  # 0 is all
TOLERANCE = 1e-3
HEADER = (
    "index",
    "file",
    "damaged",
    "crashed or refused by the trial",
    "refused by canaries and agreement",
    "equal",
    "other",
    *(f"other, told by {count} canaries" for count in CANARIES),
    *(f"other, told by {count or 'all'} documents" for count in SAMPLES),
    "median share of probes that differ where other",
)


@dataclass(frozen=True)
class Expected:
    """What the sound bundle gives."""

    asked: pd.DataFrame
    answers: list[Neighbours]
    apart: float

    @classmethod
    def of(cls, opened: Opened, examples: Path) -> "Expected":
        """Ask held-out queries, canaries to be first, and compare the index with the document tower."""
        held = HeldOut.read(examples)
        asked = pd.concat([held.tuning, held.measuring], ignore_index=True)
        keys = asked["query_text"].astype(str) + asked["history"].astype(str)
        asked = asked[~keys.duplicated()].sample(frac=1, random_state=0, ignore_index=True)
        asked = asked.head(max(CANARIES) + PROBES)
        encoded = encode_documents(opened.towers, opened.documents)
        answers = canary.served(asked, opened.query_encoder, opened.index)
        return cls(asked, answers, largest_gap(opened, encoded, np.arange(len(encoded))))


def largest_gap(opened: Opened, encoded: Vectors, rows: Rows) -> float:
    """Return the longest difference between a stored vector and the one encoded now."""
    return float(np.linalg.norm(opened.index.vectors(rows) - encoded[rows], axis=1).max())


def differs(got: Neighbours, wanted: Neighbours) -> bool:
    """Return whether an answer is another one."""
    if len(got.rows) != len(wanted.rows) or not np.isfinite(got.scores).all():
        return True
    bound = TOLERANCE * max(1e-6, float(np.abs(wanted.scores).max()))
    same_scores = np.allclose(got.scores, wanted.scores, rtol=0, atol=bound)
    return not (same_scores and np.array_equal(got.rows, wanted.rows))


def outcome(path: Path, expected: Expected) -> dict[str, Any]:
    """Try and open one bundle in this process, and say what came of it."""
    artifact = Artifact.read(path)
    try:
        trial._try(path, 60, artifact.fingerprint)
    except BaseException as error:
        return {"end": "trial", "why": str(error)[:100]}
    trial._survived.add(artifact.fingerprint)
    try:
        opened = open_bundle(path, "cpu")
    except BundleError as error:
        return {"end": "refused", "why": str(error)[:100]}
    answers = canary.served(expected.asked, opened.query_encoder, opened.index)
    differ = [differs(got, wanted) for got, wanted in zip(answers, expected.answers, strict=True)]
    probes = differ[max(CANARIES) :]
    if not any(probes):
        return {"end": "equal"}
    told = [any(differ[:count]) for count in CANARIES]
    encoded = encode_documents(opened.towers, opened.documents)
    bound = max(TOLERANCE, 1.1 * expected.apart)
    for count in SAMPLES:
        rows = np.unique(np.linspace(0, len(encoded) - 1, count or len(encoded)).astype(np.int64))
        told.append(not largest_gap(opened, encoded, rows) <= bound)
    return {"end": "other", "told": told, "share": float(np.mean(probes))}


def in_a_fork(task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a task says, done in a fork of this process; one that dies is refused by the trial."""
    back, out = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(out, json.dumps(task()).encode())
        os._exit(0)
    os.close(out)
    with os.fdopen(back, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(said)) if said else {"end": "trial", "why": "it died"}


def with_new_digests(path: Path, name: str, damaged: bytes) -> Path:
    """Put a damaged file into a bundle, and into its manifest and name, what fits it."""
    (path / name).write_bytes(damaged)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] |= {"bytes": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
    volatile = ("created_at", "seconds", "measured", "digest")
    kept = {key: value for key, value in manifest.items() if key not in volatile}
    kept["content"] = {key: value for key, value in kept["content"].items() if key not in volatile}
    kept["files"] = {key: told for key, told in kept["files"].items() if not told.get("measured")}
    manifest["digest"] = digest_of(kept)
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path.rename(path.parent / manifest["digest"][:16])


def damage(path: Path, name: str, flips: int, expected: Expected) -> list[dict[str, Any]]:
    """Change one byte of a file, a number of times, and return what came of each."""
    rng, sound, found = random.Random(0), (path / name).read_bytes(), []
    for _ in range(flips):
        place = rng.randrange(len(sound))
        other = sound[:place] + bytes([sound[place] ^ rng.randrange(1, 256)]) + sound[place + 1 :]
        path = with_new_digests(path, name, other)
        found.append(in_a_fork(lambda path=path: outcome(path, expected)))  # type: ignore[misc]
    with_new_digests(path, name, sound)
    return found


def row(factory: str, name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line of the table."""
    ends = Counter(str(one["end"]) for one in found)
    others = [one for one in found if one["end"] == "other"]
    told = [sum(one["told"][place] for one in others) for place in range(len(CANARIES) + len(SAMPLES))]
    share = f"{np.median([one['share'] for one in others]):.3f}" if others else ""
    counts = [ends[end] for end in ("trial", "refused", "equal", "other")]
    return [factory, name, *map(str, (len(found), *counts, *told)), share]


def main() -> int:
    """Damage bundles of a store and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--factories", nargs="+", default=FACTORIES)
    given = parser.parse_args()
    examples, checkpoint = (
        max((given.store / kind).iterdir(), key=os.path.getmtime) for kind in ("examples", "checkpoints")
    )
    lines = []
    for factory in given.factories:
        with tempfile.TemporaryDirectory() as folder:
            made = export(
                examples, checkpoint, None, Path(folder), IndexConfig(k=DEPTH, factory=factory)
            ).path
            started = time.perf_counter()
            opened = open_bundle(made, "cpu")
            expected = Expected.of(opened, examples)
            print(f"{factory}: opened in {time.perf_counter() - started:.2f} s, apart {expected.apart:.2e}",
                  file=sys.stderr, flush=True)  # fmt: skip
            for name in FILES if factory == given.factories[0] else FILES[:1]:
                path = Path(shutil.copytree(made, Path(folder) / "copies" / made.name))
                lines.append(row(factory, name, damage(path, name, given.flips, expected)))
                print(lines[-1], file=sys.stderr, flush=True)
                shutil.rmtree(Path(folder) / "copies")
    print(markdown(HEADER, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
