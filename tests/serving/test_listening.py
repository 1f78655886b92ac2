import asyncio
import errno
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from serving.listening import Listener
from serving.siblings import Tally


class Echo(asyncio.Protocol):
    """Sends back what comes; stands for the protocol of a connection."""

    def __init__(self, kept: "set[Echo]") -> None:
        self.kept = kept
        self.told_to_end = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.kept.add(self)

    def connection_lost(self, _) -> None:
        self.kept.discard(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def shutdown(self) -> None:
        self.told_to_end = True


class Host:
    """A listening socket, the processes that share it, and their clients."""

    def __init__(self, shared: socket.socket) -> None:
        self.shared = shared
        self.counts = Tally.memory(3)
        self.callers: list[socket.socket] = []
        self.listeners: list[Listener] = []

    def tally(self, place: int) -> Tally:
        return Tally(self.counts, place)

    def process(self, place: int | None = None, accepting: socket.socket | None = None) -> "Process":
        tally = None if place is None else self.tally(place)
        process = Process(accepting or self.shared.dup(), tally)
        self.listeners.append(process.listener)
        return process

    def connect(self, count: int) -> None:
        """Connect before anybody can take: the kernel holds what waits."""
        address = self.shared.getsockname()
        self.callers += [socket.create_connection(address, timeout=10) for _ in range(count)]

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """Run a test on the loop that serves; that one does not end while it looks at a socket."""

        async def and_close() -> None:
            try:
                await test()
            finally:
                for listener in self.listeners:
                    listener.close()
                for caller in self.callers:
                    caller.close()

        uvloop.run(and_close())


class Process:
    """What one of several processes has: a listener on the shared socket, and its connections."""

    def __init__(self, accepting: socket.socket, tally: Tally | None) -> None:
        self.kept: set[Echo] = set()
        self.listener = Listener(accepting, lambda: Echo(self.kept), lambda: len(self.kept), tally)


@pytest.fixture
def host():
    with socket.create_server(("127.0.0.1", 0)) as shared:
        yield Host(shared)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_processes_get_about_as_many_connections_each_though_all_come_at_once(host):
    async def test() -> None:
        host.connect(60)
        processes = [host.process(place) for place in (1, 2, 3)]
        await until(lambda: sum(len(process.kept) for process in processes) == 60)
        assert all(16 <= len(process.kept) <= 24 for process in processes)

    host.run(test)


def test_who_lost_its_connections_gets_the_next_ones(host):
    async def test() -> None:
        processes = [host.process(place) for place in (1, 2)]
        host.connect(20)
        await until(lambda: sum(len(process.kept) for process in processes) == 20)
        for echo in processes[0].kept:
            echo.transport.close()
        await until(lambda: not processes[0].kept)
        processes[0].listener.note()
        before = len(processes[1].kept)
        host.connect(6)
        await until(lambda: sum(len(process.kept) for process in processes) == before + 6)
        assert len(processes[0].kept) >= 5

    host.run(test)


def test_nobody_waits_for_a_process_that_hangs(host):
    async def test() -> None:
        host.tally(2).note(0)  # and takes none
        process = host.process(1)
        host.connect(30)
        await until(lambda: len(process.kept) == 30)

    host.run(test)


def test_what_waited_when_the_socket_was_closed_is_still_served_and_told_to_end(host):
    async def test() -> None:
        process = host.process()
        host.connect(30)
        process.listener.close()  # no turn of the loop came between
        await process.listener.wait_closed()
        assert len(process.kept) == 30
        assert all(echo.told_to_end for echo in process.kept)
        for caller in host.callers:
            caller.sendall(b"served")
        await asyncio.sleep(0.1)
        assert [caller.recv(10) for caller in host.callers] == [b"served"] * 30

    host.run(test)


def test_a_system_without_files_left_is_asked_again(host, monkeypatch, caplog):
    class Full(socket.socket):
        left = 2

        def accept(self):
            if Full.left:
                Full.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def test() -> None:
        process = host.process(accepting=Full(fileno=host.shared.dup().detach()))
        host.connect(3)
        began = time.monotonic()
        await until(lambda: len(process.kept) == 3)
        assert time.monotonic() - began >= 0.08
        said = "no connection can be taken now: Too many open files"
        assert [record.message for record in caplog.records] == [said] * 2

    monkeypatch.setattr("serving.listening._RETRY_SECONDS", 0.05)
    host.run(test)


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN])
def test_what_is_wrong_with_one_connection_delays_no_other(host, monkeypatch, caplog, code):
    class Odd(socket.socket):
        left = 2

        def accept(self):
            if Odd.left:
                Odd.left -= 1
                raise OSError(code, "of this one")
            return super().accept()

    async def test() -> None:
        process = host.process(accepting=Odd(fileno=host.shared.dup().detach()))
        host.connect(3)
        await until(lambda: len(process.kept) == 3)
        assert caplog.records == []

    monkeypatch.setattr("serving.listening._RETRY_SECONDS", 60)
    host.run(test)


def test_requests_have_their_turn_while_many_connections_come(host, monkeypatch):
    turns, taken = [0], []

    class Counted(socket.socket):
        def accept(self):
            taken.append(turns[0])
            return super().accept()

    async def test() -> None:
        host.connect(40)
        process = host.process(accepting=Counted(fileno=host.shared.dup().detach()))
        while len(process.kept) < 40:
            turns[0] += 1
            await asyncio.sleep(0)
        assert max(Counter(taken).values()) == 5

    monkeypatch.setattr("serving.listening._AT_ONCE", 5)
    host.run(test)


def test_a_process_that_takes_no_more_is_out_of_the_tally_and_looks_no_more(host):
    async def test() -> None:
        failures = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        few = host.tally(2)
        few.note(0)
        process = host.process(1)
        host.connect(10)
        await until(lambda: len(process.kept) >= 3)  # it leaves new ones to the other for a moment
        assert few.lead() == 0
        process.listener.close()
        few.note(50)
        assert few.lead() == 0
        await asyncio.sleep(0.05)
        assert failures == []

    host.run(test)


def test_a_client_that_is_gone_at_once_leaves_nothing(host):
    async def test() -> None:
        host.connect(5)
        for caller in host.callers:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
            caller.close()
        process = host.process()
        host.connect(1)
        await until(lambda: len(process.kept) == 1)

    host.run(test)
