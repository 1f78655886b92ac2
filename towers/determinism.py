"""Everything in the process that decides whether two trainings are the same, set for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from features.errors import ConfigError
from towers.schedule import TrainConfig


@contextmanager
def reproducible(config: TrainConfig, seed: int) -> Iterator[torch.device]:
    """Choose the device and fix what torch leaves open, restoring the process's settings at the end.

    On a CPU torch's deterministic algorithms are used; new memory is not filled, which would only cost time.

    Yields:
        Where to train.

    Raises:
        ConfigError: If the configuration asks for a CUDA device and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but torch finds no CUDA device; set it to auto or cpu")
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill: Any = torch.utils.deterministic
    filled = fill.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if use_cuda else []):
        try:
            torch.manual_seed(seed)
            torch.set_num_threads(config.num_threads or threads)
            fill.fill_uninitialized_memory = False
            torch.use_deterministic_algorithms(not use_cuda)
            yield torch.device("cuda" if use_cuda else "cpu")
        finally:
            torch.use_deterministic_algorithms(deterministic)
            fill.fill_uninitialized_memory = filled
            torch.set_num_threads(threads)
