"""A trial load in a child process: what would crash or hang while being read takes only the child with it.

`survive` starts `python -m serving.trial PATH` on one thread, with a bound on memory, processor time and wall
time, and refuses the bundle if the child ends in any way but well. The child reads what native code parses:
the faiss index (`serving.faiss_file`: every part, and a search), the Parquet catalogue, every tensor,
tokenizer and graph. It needs no torch, so that a hot swap waits for it for half a second; the towers load on
the meta device and take only the sizes of tensors that the child has seen.

A trial's outcome depends on bytes alone, so a bundle whose manifest survived once is not tried again by the
same process. The child is told the SHA-256 of the manifest that its parent read, and reads no other.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from features.artifact import Artifact
from features.errors import BundleError, TwotowerError

_BYTES_PER_SECOND = 20_000_000  # of a slow disk
_LEAST_SECONDS = 60
_LEAST_MEMORY = 2**31
_MEMORY_FACTOR = 4  # a Parquet file is a few times larger in memory
_PACKAGES = Path(__file__).parents[1]
_survived: set[str] = set()  # fingerprints of manifests


def survive(artifact: Artifact) -> None:
    """Load a verified bundle in a child process first.

    Args:
        artifact: Whose files were compared with their SHA-256.

    Raises:
        BundleError: If the child crashed, ran out of memory or time, or refused the bundle.
    """
    if artifact.fingerprint in _survived:
        return
    seconds = _LEAST_SECONDS + _size(artifact) // _BYTES_PER_SECOND
    told = (str(artifact.path.absolute()), str(seconds), artifact.fingerprint)
    command = [sys.executable, "-P", "-m", __name__, *told]
    try:
        child = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"a trial load took more than {seconds} s") from None
    if child.returncode != 0:
        raise BundleError(_why(child.returncode, child.stderr.decode(errors="replace")))
    _survived.add(artifact.fingerprint)


def _environment() -> dict[str, str]:
    """Return the child's environment: one thread, no GPU, and this package even where it is not installed."""
    path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _why(returncode: int, output: str) -> str:
    last = (output.strip().splitlines() or ["it said nothing"])[-1][:300]
    if returncode > 0:
        return last
    return f"a trial load in a child process was ended by {signal.Signals(-returncode).name}"


def _size(artifact: Artifact) -> int:
    return sum(int(recorded["bytes"]) for recorded in artifact.manifest["files"].values())


def _bound(size: int, seconds: int) -> None:
    """Bound this process's memory and processor time."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = in_use + _LEAST_MEMORY + _MEMORY_FACTOR * size
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, hard))


def _try(path: Path, seconds: int, fingerprint: str) -> None:
    """Read all that native code parses of the bundle whose manifest has this SHA-256."""
    import faiss
    import numpy as np
    import pyarrow.parquet
    from safetensors import safe_open

    from serving.faiss_file import check_faiss, read_faiss

    artifact = Artifact.read(path, "bundle")
    if artifact.fingerprint != fingerprint:
        raise BundleError(f"{path} was changed while it was being read; start again")
    _bound(_size(artifact), seconds)
    content: Any = artifact.content
    documents = pyarrow.parquet.read_table(path / "documents.parquet")
    rows = vectors = documents.num_rows
    if (path / "index" / "index.faiss").exists():  # else the vectors are in Milvus
        index = read_faiss(path / "index" / "index.faiss")
        for parameter, value in content["index"]["search"].items():
            faiss.ParameterSpace().set_index_parameter(index, parameter, value)
        check_faiss(index, unit=bool(content["unit_length"]))
        vectors = int(index.ntotal)
    if not rows == len(documents["doc_id"]) == content["documents"] <= vectors:
        raise BundleError(f"its index has {vectors} vectors for {rows} documents")
    for name in artifact.manifest["files"]:
        if name.endswith(".safetensors"):
            with safe_open(path / name, "numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                    values = tensors.get_tensor(key)
                    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                        raise BundleError(f"its tensor {key} in {name} is not finite")
        elif name.endswith(".onnx"):
            import onnxruntime

            onnxruntime.InferenceSession(str(path / name), providers=["CPUExecutionProvider"])
        elif name.endswith("tokenizer.json"):
            from tokenizers import Tokenizer

            Tokenizer.from_file(str(path / name)).encode("red shoes, 茶壶")
        elif name.endswith(".json"):
            json.loads((path / name).read_text(encoding="utf-8"))


def main() -> None:
    """Try the bundle named on the command line; the last line of stderr says what is wrong with it."""
    try:
        _try(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except MemoryError:
        sys.exit("a trial load needed more memory than a bundle of this size may")
    except TwotowerError as error:
        sys.exit(str(error))
    except BaseException as error:  # whatever a library makes of damage; a panic of Rust is no Exception
        sys.exit(f"a trial load failed: {type(error).__name__}: {' '.join(str(error).split())[:250]}")


if __name__ == "__main__":
    main()
