"""Several processes that do the same work on one listening socket, and the parent that looks after them.

uvicorn has a supervisor of its own (`uvicorn.supervisors.Multiprocess`), which is not used: it kills a child
that does not answer a ping within 5 s, which is how long imports and the load of a bundle can take, does not
hear signals while it waits for one, passes neither a second SIGTERM nor SIGINT on, and its children outlive
it when it is killed.
"""

import fcntl
import logging
import math
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path

from features.errors import ConfigError, TwotowerError
from serving.siblings import Siblings, Tally

Work = Callable[[Siblings], None]

_LOOK_SECONDS = 0.1
_QUICK_SECONDS = 60.0  # a process that lived for less counts as a failure of its place
_LONGEST_PAUSE_SECONDS = 30.0
_MARGIN_SECONDS = 2.0  # for a process to end itself for being late
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_spawn = multiprocessing.get_context("spawn")  # faiss hangs in the child of a fork

log = logging.getLogger(__name__)


@dataclass
class _Post:
    """One of the places, and who holds it; `failures` in a row, the next start not before `start_at`."""

    siblings: Siblings
    process: SpawnProcess | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    generation: int = 0


class Supervisor:
    """Starts the processes, replaces one that ends, and ends them all.

    SIGTERM goes on to every process. SIGINT does too, together with SIGTERM for those that are only starting;
    a second SIGINT kills what is left.

    Args:
        count: How many.
        work: What each does; called in the process, so it must be picklable.
        listener: What they share; it is closed here when the end begins.
        end_seconds: How long a process may take to end, also after its parent was killed.
        folder: For the sockets of siblings.
    """

    def __init__(
        self, count: int, work: Work, listener: socket.socket, end_seconds: float, folder: Path
    ) -> None:
        self._work = partial(_process, work, end_seconds)
        self._listener = listener
        shared = Tally.memory(count)
        self._posts = [
            _Post(Siblings(folder, place, count, Tally(shared, place))) for place in range(1, count + 1)
        ]
        self._received: list[int] = []
        self._ending = self._interrupted = False
        self._end_seconds = end_seconds
        self._kill_at = math.inf
        self._failed: str | None = None
        self._unclean: list[str] = []

    def run(self) -> None:
        """Return when the last process ended.

        Raises:
            ConfigError: If a process could not start.
            KeyboardInterrupt: After SIGINT.
            TwotowerError: If a process did not end in order.
        """
        resource_tracker.ensure_running()  # its own start would unblock what `_start` blocks
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            while not self._ending or self._running:
                self._start_missing()
                connection.wait([process.sentinel for process in self._running], _LOOK_SECONDS)
                while self._received:
                    self._end(self._received.pop(0))
                if time.monotonic() > self._kill_at:
                    self._kill_late()
                self._note_ended()
        finally:
            for process in self._running:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failed is not None:
            raise ConfigError(self._failed)
        if self._interrupted:
            raise KeyboardInterrupt
        if self._unclean:
            raise TwotowerError(f"{', '.join(self._unclean)} did not end in order; the log says why")

    @property
    def _running(self) -> list[SpawnProcess]:
        return [post.process for post in self._posts if post.process is not None]

    def _hear(self, number: int, _: object) -> None:
        self._received.append(number)

    def _start_missing(self) -> None:
        for post in self._posts:
            if post.process is None and not self._ending and time.monotonic() >= post.start_at:
                try:
                    self._start(post)
                except OSError as error:  # no memory for one now, or no process
                    self._note_failure(post, f"cannot be started ({error.strerror})")

    def _start(self, post: _Post) -> None:
        """Start a process that hears no SIGINT of the terminal, which goes to the parent."""
        siblings = post.siblings
        siblings.path.unlink(missing_ok=True)
        process = _spawn.Process(target=self._work, args=(siblings,), name=f"process {siblings.place}")
        post.started_at, post.generation = time.monotonic(), post.generation + 1
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        post.process = process

    def _note_ended(self) -> None:
        for post in self._posts:
            process = post.process
            if process is None or (code := process.exitcode) is None:
                continue
            post.process = None
            if self._ending:
                self._unclean += [process.name] if code > 0 else []
                continue
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            if code > 0 and post.generation == 1 and not post.siblings.path.exists():
                self._failed = f"{process.name} of the server could not start ({how}); it said why above"
                self._end(signal.SIGINT)
                self._interrupted = False
                continue
            self._note_failure(post, f"ended ({how})")

    def _note_failure(self, post: _Post, what: str) -> None:
        lived = time.monotonic() - post.started_at
        post.failures = post.failures + 1 if lived < _QUICK_SECONDS else 0
        pause = min(_LONGEST_PAUSE_SECONDS, 2.0**post.failures - 1)
        post.start_at = time.monotonic() + pause
        log.warning("process %d %s; another takes its place in %.0f s", post.siblings.place, what, pause)

    def _kill_late(self) -> None:
        """Kill what neither ended nor ended itself for being late: it was stopped, say."""
        self._kill_at = math.inf
        for process in self._running:
            log.error("%s did not end in %.0f s and is killed", process.name, self._end_seconds)
            self._unclean.append(process.name)
            process.kill()

    def _end(self, number: int) -> None:
        self._ending = True
        self._kill_at = min(self._kill_at, time.monotonic() + self._end_seconds + _MARGIN_SECONDS)
        self._listener.close()
        for process in self._running:
            if process.exitcode is not None or process.pid is None:
                continue
            if self._interrupted and number == signal.SIGINT:
                process.kill()
                continue
            process.terminate()
            if number == signal.SIGINT:
                os.kill(process.pid, signal.SIGINT)
        self._interrupted |= number == signal.SIGINT


def supervise(count: int, work: Work, listener: socket.socket, end_seconds: float) -> None:
    """Let so many processes do the work until they are told to end.

    Args:
        count: How many.
        work: What each does; called in the process, so it must be picklable.
        listener: What they share; closed when the end begins.
        end_seconds: How long a process may take to end, also after its parent was killed.

    Raises:
        ConfigError: If a process cannot start.
        KeyboardInterrupt: After SIGINT.
        TwotowerError: If a process did not end in order.
    """
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as folder:
        kept = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # what sweeps /tmp of old files leaves it alone then: tmpfiles.d(5)
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            Supervisor(count, work, listener, end_seconds, Path(folder)).run()
        finally:
            os.close(kept)


def _process(work: Work, end_seconds: float, siblings: Siblings) -> None:
    """Do the work in a process of its own, no longer than the parent lives."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets what came since the start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orphaned = threading.Event()
    threading.Thread(target=_end_with_parent, args=(end_seconds, orphaned), daemon=True).start()
    try:
        work(siblings)
    except KeyboardInterrupt:
        pass
    except TwotowerError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    finally:
        if orphaned.is_set():
            shutil.rmtree(siblings.folder, ignore_errors=True)


def _end_with_parent(end_seconds: float, orphaned: threading.Event) -> None:
    """Wait for the parent's end, however it comes; then what was begun is finished, and no more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    orphaned.set()
    for number in _SIGNALS:
        os.kill(os.getpid(), number)
    time.sleep(end_seconds)
    os._exit(1)
