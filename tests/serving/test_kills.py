"""SIGKILL at random moments of exporting, promoting, rolling back, pruning and serving.

One process imports everything and forks for each deed, so that a kill costs no start of Python. Meanwhile
another process reads the store all the time: whatever it sees must be whole.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from features.artifact import Artifact
from serving.store import Store

FORKS = """
import os, random, sys, traceback
from pathlib import Path
import cryptography.hazmat.primitives.asymmetric.ed25519
from serving.build import IndexConfig
from serving.export import export
from serving.pruning import prune
from serving.store import Store

root = Path(sys.argv[1])
store = Store(root)

def export_bundles(rng):
    while True:
        chosen = {"nprobe": 1 + rng.randrange(4)}
        config = IndexConfig(factory="IVF4,Flat", search=chosen, k=5 + rng.randrange(9))
        export(root / "examples", root / "checkpoints" / str(rng.randrange(2)), None, store.bundles, config)

def promote_bundles(rng):
    while True:
        ids = store.bundle_ids()
        deed = rng.random()
        try:
            if deed < 0.6:
                store.set_champion(rng.choice(ids), "promoted")
            elif deed < 0.8:
                store.roll_back()
            else:
                prune(store, keep=6)
        except Exception as error:
            if type(error).__name__ != "BundleError":  # pruned meanwhile, or nothing to go back to
                raise

def serve_store(rng):
    from serving.api import ServeConfig, serve

    serve(root, ServeConfig(port=int(sys.argv[2]), poll_seconds=0.05))

if sys.argv[2] != "0":
    import serving.api  # once, before the forks

for line in sys.stdin:
    deed, seed = line.split()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            globals()[deed](random.Random(int(seed)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
READER = """
import json, sys, time
from pathlib import Path
from features.artifact import Artifact
from features.errors import ArtifactError
from serving.store import Store

store, looks, torn, longest = Store(Path(sys.argv[1])), 0, [], 0
def inode(path):
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
while not (store.root / "stop").exists():
    try:
        history = store.history()
        if len(history) < longest:
            torn.append(f"the history went from {longest} entries to {len(history)}")
        longest = len(history)
    except ArtifactError as error:
        torn.append(str(error))
    for bundle_id in store.bundle_ids():
        path = store.bundle_path(bundle_id)
        before = inode(path)
        try:
            Artifact.read(path, "bundle", verify=True)
        except (ArtifactError, OSError) as error:
            if before is not None and inode(path) == before:  # else it was pruned while it was read
                torn.append(f"{bundle_id}: {error}")
        looks += 1
    champion = store.champion()
    if champion and not store.bundle_path(champion.bundle_id).exists():
        if store.champion() == champion:
            torn.append(f"the champion {champion.bundle_id} is not there")
print(json.dumps({"looks": looks, "torn": torn}))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


class Forks:
    """Deeds in forks of one process."""

    def __init__(self, root: Path, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(root), str(port)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, deed: str, seed: int) -> int:
        """Fork and do it; returns the child's process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{deed} {seed}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def kill(self, child: int) -> None:
        """Kill the child that was begun; fails if it ended by itself."""
        os.kill(child, signal.SIGKILL)
        assert self._process.stdout is not None
        assert int(self._process.stdout.readline()) == -signal.SIGKILL

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def watched(root: Path) -> Iterator[None]:
    """Another process reads the store while the block runs; nothing it saw may have been torn."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(root)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        (root / "stop").touch()
        said, _ = reader.communicate(timeout=120)
        (root / "stop").unlink()
    seen = json.loads(said)
    assert seen["torn"] == []
    assert seen["looks"] > 20
    print(f"\nwhole bundles read meanwhile: {seen['looks']:,}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def root(tmp_path: Path, make) -> Path:
    first = make.shop(tmp_path).path.name
    make.shop(tmp_path, seed=1)
    Store(tmp_path).set_champion(first, "first")
    return tmp_path


def kill_writers(root: Path, exports: int, promotions: int, seconds: tuple[float, float], seed: int) -> None:
    """Kill exports and promotions at random moments, and look at the store after each."""
    rng, store = random.Random(seed), Store(root)
    deeds = ["export_bundles"] * exports + ["promote_bundles"] * promotions
    rng.shuffle(deeds)
    forks = Forks(root, 0)
    try:
        with watched(root):
            for number, deed in enumerate(deeds):
                before = store.history()
                child = forks.begin(deed, number)
                time.sleep(rng.uniform(0, seconds[0] if deed == "export_bundles" else seconds[1]))
                forks.kill(child)
                assert store.history()[: len(before)] == before
                champion = store.champion()
                assert champion is not None
                Artifact.read(store.bundle_path(champion.bundle_id), "bundle", verify=True)
    finally:
        forks.close()
    for bundle_id in store.bundle_ids():
        assert Artifact.read(store.bundle_path(bundle_id), "bundle", verify=True).digest[:16] == bundle_id


def kill_servers(root: Path, kills: int, seed: int) -> list[float]:
    """Kill a server again and again while champions change; returns the seconds until ready each time."""
    rng, store, port = random.Random(seed), Store(root), free_port()
    forks, waited = Forks(root, port), []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            for number in range(kills):
                child = forks.begin("serve_store", number)
                started = time.monotonic()
                if number % 4 == 3:  # before it is ready
                    time.sleep(rng.uniform(0, 0.5))
                    forks.kill(child)
                    continue
                champion = store.champion()
                assert champion is not None
                assert ready(http) == champion.bundle_id
                waited.append(time.monotonic() - started)
                other = rng.choice([name for name in store.bundle_ids() if name != champion.bundle_id])
                store.set_champion(other, "promoted under load")
                until = time.monotonic() + rng.uniform(0, 0.5)
                while time.monotonic() < until:
                    reply = http.post("/v1/search", json={"text": "red shoes", "k": 3}).json()
                    assert reply["bundle_id"] in (champion.bundle_id, other)
                    assert len(reply["hits"]) == 3
                forks.kill(child)
    finally:
        forks.close()
    return waited


def ready(http: httpx.Client, seconds: float = 60.0) -> str:
    """Wait for a server that serves its champion, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            reply = http.get("/readyz")
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        if reply.status_code == 200:
            return str(reply.json()["bundle_id"])
        time.sleep(0.02)
    raise AssertionError("the server did not become ready")


def test_killed_writers_leave_no_torn_bundle_and_no_lost_promotion(root: Path):
    kill_writers(root, exports=2, promotions=4, seconds=(1.0, 0.1), seed=1)


@pytest.mark.crash
def test_a_hundred_and_sixty_kills_of_exports_and_promotions_show_no_reader_a_torn_artifact(root: Path):
    kill_writers(root, exports=60, promotions=100, seconds=(1.5, 0.2), seed=2)


@pytest.mark.crash
def test_a_server_killed_forty_times_is_ready_again_with_the_champion(root: Path):
    waited = kill_servers(root, kills=40, seed=3)
    print(f"\nready after {sorted(waited)[len(waited) // 2]:.2f} s (median of {len(waited)})")
