"""Where an index is searched: on the CPU, or on a GPU where the installed FAISS has one."""

import re
from typing import Any, Literal

import faiss

from features.errors import ConfigError


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


def place(index: Any, device: str) -> tuple[Any, Literal["cpu", "gpu"], str]:
    """Move an index to a GPU where asked and possible; index_cpu_to_all_gpus is a trap without one."""
    gpus = int(faiss.get_num_gpus())
    if device == "cpu" or (device == "auto" and gpus == 0):
        return index, "cpu", f"faiss {faiss.__version__} on CPU ({gpus} GPUs seen)"
    require_device(device)
    try:
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:
        if device == "gpu":
            raise ConfigError(f"this index cannot be placed on the GPU: {reason(error)}") from None
        return index, "cpu", f"faiss {faiss.__version__} on CPU, since the GPU refused: {reason(error)}"
    return moved, "gpu", f"faiss {faiss.__version__} on GPU 0 of {gpus}"


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
