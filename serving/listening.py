"""Taking connections: several processes on one socket get about as many each, and the end loses none.

libuv takes all that wait at once, so of 64 connections that came together three processes got 35, 29 and 0;
and the kernel resets what still waits when a listening socket is closed.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from serving.connection import CappedProtocol
from serving.siblings import Tally

_BACKLOG = 2_048  # connections that wait to be taken; uvicorn's
_AT_ONCE = 64  # connections that are taken before requests have their turn again
_AHEAD = 2  # connections that a process may have more than the one with the fewest
_PAUSE_SECONDS = 0.002  # for which a process that has more leaves connections to the others
_RETRY_SECONDS = 1.0  # after the system had no file or memory for a connection
_OF_ONE = {  # what went wrong with one connection and not with the next: accept(2)
    getattr(errno, name, None)
    for name in [
        "ECONNABORTED",
        "EPERM",
        "EPROTO",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENONET",
    ]
}

log = logging.getLogger(__name__)


class Listener:
    """Takes the connections of a listening socket, as `asyncio.Server` does, but for the above.

    A process that has more connections than another leaves new ones alone for a moment. When that has passed
    it takes one all the same, so that nobody waits for a process that hangs.

    Args:
        listening: Bound; closed in the end.
        protocol: Makes the protocol of a connection.
        connections: How many there are.
        tally: Of the processes that share the socket; None: there are no others.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], CappedProtocol],
        connections: Callable[[], int],
        tally: Tally | None = None,
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._connections = connections
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._loop.add_reader(listening, self._take)
        self.note()

    def close(self) -> None:
        """Take what has come so far, and no more."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()
        for _ in range(_BACKLOG):
            if not self._accept():
                break
        self._listening.close()
        if self._tally is not None:
            self._tally.leave()

    async def wait_closed(self) -> None:
        """Return when every connection that was taken has its protocol."""
        if self._arriving:
            await asyncio.wait(self._arriving)

    def note(self) -> None:
        """Tell siblings how many connections there are."""
        if self._tally is not None and not self._closed:
            self._tally.note(self._connections() + len(self._arriving))

    def _is_ahead(self) -> bool:
        self.note()
        return self._tally is not None and self._tally.lead() >= _AHEAD

    def _take(self) -> None:
        for _ in range(_AT_ONCE):
            if self._is_ahead():
                self._rest(_PAUSE_SECONDS)
                return
            if not self._accept():
                return

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listening, self._take)
        self._accept()

    def _accept(self) -> bool:
        """Take one connection; return whether there was one."""
        try:
            taken, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _OF_ONE:
                return True
            if not self._closed:
                log.error("no connection can be taken now: %s", error.strerror)
                self._rest(_RETRY_SECONDS)
            return False
        taken.setblocking(False)
        task = self._loop.create_task(self._connect(taken))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        return True

    async def _connect(self, taken: socket.socket) -> None:
        try:
            _, protocol = await self._loop.connect_accepted_socket(self._protocol, taken)
        except OSError:  # the client is gone
            taken.close()
            return
        if self._closed:
            protocol.shutdown()
