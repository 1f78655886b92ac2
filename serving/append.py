"""Lines appended to a file that other processes append to as well."""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a file that only its owner may read, all of them or none.

    A part of a line that a killed process left at the end stays a line of its own.

    Args:
        path: Made where there is none; its folder is not.
        lines: Without line ends.

    Raises:
        OSError: If they cannot be written.
    """
    left = memoryview(("\n".join(lines) + "\n").encode())
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            left = memoryview(b"\n" + left)
        end = size
        try:
            while left:
                written = os.write(file, left)
                end += written
                left = left[written:]
        except OSError:
            _cut(file, size, end)
            raise
    finally:
        os.close(file)


def _cut(file: int, size: int, end: int) -> None:
    """Take back what was appended, unless somebody who takes no lock appended to it meanwhile."""
    with suppress(OSError):
        if os.fstat(file).st_size == end:
            os.ftruncate(file, size)
