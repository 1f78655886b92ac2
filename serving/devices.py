"""Where an index is searched: on the CPU, or on a GPU where the installed FAISS has one."""

import re
from typing import Any, Literal, NamedTuple

import faiss

from features.errors import ConfigError
from serving.vectors import Vectors

_GPU: Any = faiss  # its stubs are those of the CPU build


def require_device(device: str) -> None:
    """Assert that a device that was asked for is there.

    Raises:
        ConfigError: If it is `gpu` and faiss sees none.
    """
    if device == "gpu" and faiss.get_num_gpus() == 0:
        raise ConfigError("device is gpu, but faiss sees none; install faiss-gpu or use device: auto")


def describe_faiss() -> dict[str, str | int]:
    """Return the faiss version, its compile options and the number of GPUs it sees."""
    return {
        "version": str(faiss.__version__),
        "options": str(faiss.get_compile_options()).strip(),
        "gpus": int(faiss.get_num_gpus()),
    }


class Placement(NamedTuple):
    """Where an index is searched, and why.

    Attributes:
        index: What to search: the index itself, or its copy on a GPU.
        device: `cpu` or `gpu`.
        note: The same in words, with the faiss version.
        lost: Why a GPU that is there is not used though it was wished for; None where nothing was lost.
    """

    index: Any
    device: Literal["cpu", "gpu"]
    note: str
    lost: str | None


def place(index: Any, device: str) -> Placement:
    """Move an index to a GPU where asked and possible; index_cpu_to_all_gpus is a trap without one.

    Every placed index has resources of its own, since one `StandardGpuResources` serves one thread.

    Raises:
        ConfigError: If `device` is `gpu` and there is none, or it cannot hold this index.
    """
    gpus = int(faiss.get_num_gpus())
    if device == "cpu" or (device == "auto" and gpus == 0):
        return Placement(index, "cpu", f"faiss {faiss.__version__} on CPU ({gpus} GPUs seen)", None)
    require_device(device)
    try:
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:
        if device == "gpu":
            raise ConfigError(f"this index cannot be placed on the GPU: {reason(error)}") from None
        return on_cpu(index, f"the GPU refused the index: {reason(error)}")
    return Placement(moved, "gpu", f"faiss {faiss.__version__} on GPU 0 of {gpus}", None)


def on_cpu(index: Any, why: str) -> Placement:
    """Search on the CPU after all, and say why."""
    return Placement(index, "cpu", f"faiss {faiss.__version__} on CPU, since {why}", f"on CPU, since {why}")


def best_device(device: str) -> Literal["cpu", "gpu", "cagra"]:
    """Return what candidates there are for a configured device: `cagra` is a GPU whose faiss has that too."""
    if device == "cpu" or faiss.get_num_gpus() == 0:
        return "cpu"
    return "cagra" if hasattr(faiss, "GpuIndexCagra") else "gpu"


def build_cagra(document_ND: Vectors, degree: int) -> Any:
    """Build a CAGRA graph on the GPU and return it as the CPU graph that stores it and can be searched too.

    Raises:
        ConfigError: If faiss has no CAGRA or sees no GPU.
        RuntimeError: If the GPU cannot build it.
    """
    if best_device("gpu") != "cagra":
        raise ConfigError(
            "index.factory CAGRA needs a GPU and a faiss with cuVS (faiss-gpu-cuvs); use HNSW32 without"
        )
    config = _GPU.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = degree, 2 * degree
    dimension = document_ND.shape[1]
    built = _GPU.GpuIndexCagra(faiss.StandardGpuResources(), dimension, faiss.METRIC_INNER_PRODUCT, config)
    built.train(document_ND)
    graph = _GPU.IndexHNSWCagra()
    built.copyTo(graph)
    return graph


def set_on_gpu(placed: Any, name: str, value: int) -> None:
    """Set a search parameter of an index on a GPU; a CAGRA graph takes its own with every search."""
    if not _is_cagra(placed):
        faiss.GpuParameterSpace().set_index_parameter(placed, name, value)


def search_on_gpu(placed: Any, host: Any, query_BD: Vectors, k: int) -> tuple[Any, Any]:
    """Return scores and rows; a CAGRA graph keeps as many candidates as its CPU form would, in 32s."""
    if not _is_cagra(placed):
        scores, rows = placed.search(query_BD, k)
        return scores, rows
    wanted = _GPU.SearchParametersCagra()
    wanted.itopk_size = 32 * -(-max(k, int(_GPU.downcast_index(host).hnsw.efSearch)) // 32)
    scores, rows = placed.search(query_BD, k, params=wanted)
    return scores, rows


def _is_cagra(placed: Any) -> bool:
    kind = getattr(faiss, "GpuIndexCagra", None)
    return kind is not None and isinstance(placed, kind)


def stored_bytes(index: Any) -> int:
    """Return the size of the file that a CPU index makes, without making it."""
    sizes: list[int] = []
    writer = faiss.PyCallbackIOWriter(lambda block: sizes.append(len(block)))  # type: ignore[attr-defined]
    faiss.write_index(index, writer)
    return sum(sizes)


def reason(error: RuntimeError) -> str:
    """Return the last sentence of a faiss error, without the C++ signature before it."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*?(?:failed: |\.cpp:\d+: (?:Error: )?)", "", text) or text
