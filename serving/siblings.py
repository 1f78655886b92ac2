"""What the server processes behind one port know of each other: a private socket for each, and a tally.

The sockets are in a folder that only their owner can enter. Whoever connects to one is told that process's
metrics, so that `/metrics` covers all of them whichever process answers. A process has its socket from when
it takes requests, so one that cannot be asked takes none.
"""

import asyncio
import ctypes
import math
import multiprocessing
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from features.errors import ConfigError

_END = b"# EOF\n"  # without it a sibling was ended while it wrote
_WAIT_SECONDS = 1.0
_FORGOTTEN_SECONDS = 1.0  # after it last said how many connections it has
_LONGEST_PATH = 100  # of a Unix-domain socket, in bytes; Linux takes 107


class Tally:
    """How many connections each of several processes has, in memory that they share.

    A process says so at least ten times a second. One that has not for a second hangs or is gone, and counts
    no more.

    Args:
        shared: What `Tally.memory` made, the same for all of them.
        place: Of this process, from 1.
    """

    def __init__(self, shared: "ctypes.Array[ctypes.c_double]", place: int) -> None:
        self._shared = shared
        self._own = 2 * (place - 1)

    @staticmethod
    def memory(count: int) -> "ctypes.Array[ctypes.c_double]":
        """Return memory for so many processes, which it reaches as an argument of their start."""
        return multiprocessing.get_context("spawn").RawArray(ctypes.c_double, 2 * count)

    def note(self, connections: int) -> None:
        """Say how many this process has."""
        self._shared[self._own] = connections
        self._shared[self._own + 1] = time.monotonic()

    def leave(self) -> None:
        """Say that this process takes no more."""
        self._shared[self._own + 1] = -math.inf

    def lead(self) -> int:
        """Return how many more this process has than the one with the fewest."""
        own, since = self._shared[self._own], time.monotonic() - _FORGOTTEN_SECONDS
        noted = self._shared[:]
        counted = (count for count, at in zip(noted[::2], noted[1::2], strict=True) if at > since)
        return int(own - min(counted, default=own))


@dataclass(frozen=True)
class Siblings:
    """One process's place among those that serve one port.

    Attributes:
        folder: Where the sockets are.
        place: This process's, from 1.
        count: How many processes there are to be.
        tally: Of the connections that each of them has.

    Raises:
        ConfigError: If the folder's path is too long for sockets in it.
    """

    folder: Path
    place: int
    count: int
    tally: Tally

    def __post_init__(self) -> None:
        if len(bytes(self.path)) > _LONGEST_PATH:
            raise ConfigError(f"{self.folder} is too long for sockets in it; set TMPDIR to a shorter path")

    @property
    def path(self) -> Path:
        """This process's socket."""
        return self._path(self.place)

    async def listen(self, tell: Callable[[], bytes]) -> asyncio.AbstractServer:
        """Answer siblings from now on.

        Args:
            tell: Makes this process's metrics.
        """

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(tell() + _END)
                await writer.drain()
            except ConnectionError:  # it did not wait
                pass
            finally:
                writer.close()

        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(answer, self.path)
        self.path.chmod(0o600)
        return server

    async def ask(self) -> dict[int, bytes]:
        """Return the metrics of the siblings that answer within a second, by place."""
        others = [place for place in range(1, self.count + 1) if place != self.place]
        told = await asyncio.gather(*(_read(self._path(place)) for place in others))
        return {place: text for place, text in zip(others, told, strict=True) if text is not None}

    def is_alone(self) -> bool:
        """Return whether no sibling takes requests."""
        return not any(
            _accepts(self._path(place)) for place in range(1, self.count + 1) if place != self.place
        )

    def _path(self, place: int) -> Path:
        return self.folder / f"{place}.sock"


async def _read(path: Path) -> bytes | None:
    async def read() -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return await reader.read()
        finally:
            writer.close()

    try:
        told = await asyncio.wait_for(read(), _WAIT_SECONDS)
    except (OSError, TimeoutError):
        return None
    return told.removesuffix(_END) if told.endswith(_END) else None


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_WAIT_SECONDS)
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True
