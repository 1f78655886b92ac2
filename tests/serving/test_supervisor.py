"""The parent of several processes: who replaces whom, how all end, and who is told."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = '''
"""Processes that tell every caller their place and id, and nothing else."""
import errno, os, signal, socket, sys, time
from functools import partial
from multiprocessing.context import SpawnProcess
from features.errors import ConfigError
from serving import processes
from serving.processes import supervise

def work(how, listener, siblings):
    if how == "broken" and siblings.place == 2:
        raise ConfigError("it has no legs")
    private = socket.socket(socket.AF_UNIX)
    private.bind(str(siblings.path))
    private.listen()
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif how == "unclean":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1 if siblings.place == 2 else 0))
    elif how == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (listener.close(), time.sleep(1.5), os._exit(0)))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener.settimeout(0.1)  # a signal that another thread took interrupts no call
    while True:
        try:
            caller, _ = listener.accept()
        except TimeoutError:
            continue
        caller.sendall(f"{siblings.place} {os.getpid()} {siblings.folder}".encode())
        caller.close()

class Crowded(SpawnProcess):
    """The system has no process left when place 2 is to be taken, once."""
    left = 1

    def start(self):
        if self.name == "process 2" and Crowded.left:
            Crowded.left -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        super().start()

if __name__ == "__main__":
    if sys.argv[1] == "crowded":
        processes._spawn.Process = Crowded
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
        supervise(3, partial(work, sys.argv[1], listener), listener, 2.0)
'''


class Family:
    """A parent and the processes that it started."""

    def __init__(self, process: subprocess.Popen[str], port: int, make: SimpleNamespace) -> None:
        self.process, self.port, self.make = process, port, make

    def children(self) -> list[int]:
        """Ids of the processes that do the work, oldest first."""
        return self.make.workers(self.process.pid)

    def who(self) -> tuple[str, int, Path]:
        """Ask: the place, the id and the folder of whoever answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as asking:
            place, pid, folder = asking.recv(1_000).decode().split()
        return place, int(pid), Path(folder)

    def open_places(self) -> list[str]:
        """Names of the sockets that siblings have."""
        return sorted(path.name for path in self.who()[2].glob("*.sock"))


@pytest.fixture
def family(tmp_path: Path, make: SimpleNamespace) -> Callable[[str], AbstractContextManager[Family]]:
    """Starts a parent whose processes behave in some way."""
    return partial(run_family, make, tmp_path)


@contextmanager
def run_family(make: SimpleNamespace, folder: Path, how: str) -> Iterator[Family]:
    (folder / "family.py").write_text(SCRIPT)
    port = make.free_port()
    command = [sys.executable, str(folder / "family.py"), how, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield Family(process, port, make)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def three(family, make) -> Iterator[Family]:
    with family("well") as started:
        make.wait_until(lambda: make.accepts(started.port))
        make.wait_until(lambda: started.open_places() == ["1.sock", "2.sock", "3.sock"])
        yield started


def test_a_killed_process_is_replaced_at_its_place_and_the_others_stay(three, make):
    before = three.children()
    place, killed, _ = three.who()
    os.kill(killed, signal.SIGKILL)
    make.wait_until(lambda: len(three.children()) == 3 and killed not in three.children())
    make.wait_until(lambda: (answer := three.who())[0] == place and answer[1] != killed)
    assert sorted(three.children())[:2] == sorted({*before} - {killed})


def test_sigterm_ends_all_with_0_and_leaves_neither_port_nor_folder(three, make):
    children, folder = three.children(), three.who()[2]
    assert folder.stat().st_mode & 0o777 == 0o700
    three.process.terminate()
    assert three.process.wait(20) == 0
    assert make.ended(children)
    assert not folder.exists()
    assert not make.accepts(three.port)


def test_processes_end_with_a_parent_that_was_killed(three, make):
    children, folder = three.children(), three.who()[2]
    three.process.kill()
    make.wait_until(lambda: make.ended(children))
    make.wait_until(lambda: not folder.exists())
    assert not make.accepts(three.port)


def test_an_interrupt_of_the_terminal_reaches_all_by_the_parent_once(three, make):
    children = three.children()
    assert [os.getsid(pid) for pid in children] == children  # out of the terminal's reach
    os.killpg(three.process.pid, signal.SIGINT)
    _, said = three.process.communicate(timeout=20)
    assert three.process.returncode == -signal.SIGINT
    assert make.ended(children)
    assert said.count("Traceback") == 1  # the parent's, whose caller here does not catch it


def test_nothing_is_accepted_while_processes_finish(family, make):
    with family("slow") as started:
        make.wait_until(lambda: make.accepts(started.port))
        make.wait_until(lambda: len(started.open_places()) == 3)
        started.process.terminate()
        make.wait_until(lambda: not make.accepts(started.port), 1.0)
        assert started.process.poll() is None
        assert started.process.wait(20) == 0


def test_a_second_interrupt_kills_what_does_not_end(family, make):
    with family("stubborn") as started:
        make.wait_until(lambda: make.accepts(started.port))
        make.wait_until(lambda: len(started.open_places()) == 3)
        children = started.children()
        for _ in range(2):
            assert not make.ended(children)
            started.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        started.process.wait(20)
        assert make.ended(children)


def test_a_process_that_cannot_start_ends_the_rest_and_says_so(family, make):
    with family("broken") as started:
        _, said = started.process.communicate(timeout=60)
        assert started.process.returncode == 1
    assert "it has no legs" in said
    assert "ConfigError: process 2 of the server could not start (exit code 1)" in said


def test_what_was_stopped_and_cannot_end_is_killed_in_time_and_said(three, make):
    stopped = three.children()[1]
    os.kill(stopped, signal.SIGSTOP)
    three.process.terminate()
    try:
        _, said = three.process.communicate(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert three.process.returncode == 1
    assert make.ended([stopped])
    assert re.search(r"process \d did not end in 2 s and is killed", said)
    assert re.search(r"TwotowerError: process \d did not end in order", said)


def test_a_process_that_does_not_end_in_order_is_said(family, make):
    with family("unclean") as started:
        make.wait_until(lambda: make.accepts(started.port))
        make.wait_until(lambda: len(started.open_places()) == 3)
        started.process.terminate()
        _, said = started.process.communicate(timeout=20)
        assert started.process.returncode == 1
    assert "TwotowerError: process 2 did not end in order" in said


def test_a_process_for_which_the_system_has_no_place_is_tried_again_and_the_others_stay(family, make):
    with family("crowded") as started:
        make.wait_until(lambda: make.accepts(started.port))
        make.wait_until(lambda: started.open_places() == ["1.sock", "2.sock", "3.sock"])
        children = started.children()
        started.process.terminate()
        _, said = started.process.communicate(timeout=20)
        assert started.process.returncode == 0
    assert len(children) == 3
    text = "process 2 cannot be started (Resource temporarily unavailable); another takes its place in 1 s"
    assert text in said
