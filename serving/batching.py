"""Many requests' searches answered together: one encoder call for all that came while the last one ran.

Nothing waits while a worker is idle, but for what comes in the same turns of the event loop. What arrives
while all workers are busy forms the next batch, together with what the answers of the last one bring at once,
so a batch grows with the load and a lone request pays for a thread change only. A batch asks one retriever: a
request keeps the bundle that it took, whatever is promoted meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import faiss
from pydantic import Field

from features.config import Config
from features.errors import TwotowerError
from serving.milvus_collection import IndexUnavailableError
from serving.retriever import QueryError
from serving.search import Answer, Search

DEADLINE: ContextVar[float | None] = ContextVar("DEADLINE", default=None)
"""When the present request's answer is of no use any more, by `time.monotonic()`; None is never."""

_QUIET_TURNS = 2  # of the event loop that bring nothing more before a batch starts
_SWEEP_SECONDS = 0.02  # time between two looks at the deadlines of what waits


class BatchingConfig(Config):
    """How searches of different requests are put together."""

    max_batch: int = Field(64, ge=1, le=4_096, description="most searches that are answered in one go")
    max_queue: int = Field(
        1_024, ge=1, le=1_000_000, description="most searches that wait; more are refused with 503"
    )
    workers: int = Field(
        1, ge=1, le=64, description="batches at the same time; a second one helps where cores are free"
    )


class BusyError(TwotowerError):
    """The request was given up before any work was done for it; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Engine(Protocol):
    """What answers a batch; `serving.retriever.Retriever` does."""

    def answer_many(self, searches: list[Search]) -> Sequence[Answer | QueryError]:
        """Return one answer or one refusal for each search, in their order."""


class BatchWatch(Protocol):
    """What is told of every batch, such as metrics; called in the event loop."""

    def batch_done(self, answers: Sequence[Answer | QueryError]) -> None:
        """Take note of a batch's answers."""


@dataclass(eq=False)
class _Job:
    engine: Engine
    searches: list[Search]
    deadline: float | None
    future: "asyncio.Future[list[Answer | QueryError]]"


class Batcher:
    """Collects searches and answers them in worker threads. Everything but the work is the event loop's.

    Args:
        config: Sizes.
        watch: Told of every batch.
        threads: How many threads faiss may use for a batch; None: as many as it likes.
    """

    def __init__(
        self,
        config: BatchingConfig | None = None,
        watch: BatchWatch | None = None,
        threads: int | None = None,
    ) -> None:
        self.config = config or BatchingConfig()
        self._watch = watch
        self._waiting: deque[_Job] = deque()
        self._queued = 0
        self._running = 0
        self._gathering = False
        self._sweep: asyncio.TimerHandle | None = None
        limit = None if threads is None else partial(faiss.omp_set_num_threads, threads)  # of each thread
        self._threads = ThreadPoolExecutor(self.config.workers, "search", initializer=limit)
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def depth(self) -> int:
        """How many searches wait for a worker."""
        return self._queued

    async def answer(self, engine: Engine, searches: list[Search]) -> list[Answer | QueryError]:
        """Return an answer or a refusal for each search, in their order.

        Args:
            engine: What answers all of them; the batch has no searches of another one.
            searches: Of one request; more than `max_batch` of them are answered in parts.

        Raises:
            BusyError: If the queue is full, or the request's `DEADLINE` passed while it waited.
        """
        size = self.config.max_batch
        if self._queued + len(searches) > max(self.config.max_queue, len(searches)):
            raise BusyError("queue_full", f"{self._queued} searches wait already; try again")
        loop = asyncio.get_running_loop()
        jobs = [
            _Job(engine, searches[start : start + size], DEADLINE.get(), loop.create_future())
            for start in range(0, len(searches), size)
        ]
        self._waiting.extend(jobs)
        self._queued += len(searches)
        self._begin_gathering(loop)
        if self._sweep is None:
            self._sweep = loop.call_later(_SWEEP_SECONDS, self._sweep_waiting)
        if len(jobs) == 1:
            return await jobs[0].future
        return [answer for part in await _all(jobs) for answer in part]

    async def close(self) -> None:
        """Let running batches finish and end the threads."""
        while self._batches or self._gathering:
            await (asyncio.wait(set(self._batches)) if self._batches else asyncio.sleep(0))
        await asyncio.to_thread(self._threads.shutdown)

    def _start_batches(self) -> None:
        while self._running < self.config.workers and (jobs := self._next_batch()):
            self._running += 1
            task = asyncio.get_running_loop().create_task(self._run(jobs))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    def _next_batch(self) -> list[_Job]:
        """Take from the queue, oldest first, what asks the same engine as the oldest, up to `max_batch`."""
        batch: list[_Job] = []
        passed: deque[_Job] = deque()
        size = 0
        self._expire()
        while self._waiting:
            job = self._waiting.popleft()
            count = len(job.searches)
            if job.future.cancelled():
                self._queued -= count
            elif batch and (job.engine is not batch[0].engine or size + count > self.config.max_batch):
                passed.append(job)
                if size + count > self.config.max_batch:
                    break
            else:
                batch.append(job)
                size += count
                self._queued -= count
        self._waiting.extendleft(reversed(passed))
        return batch

    def _begin_gathering(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._queued and not self._gathering:
            self._gathering = True
            loop.call_soon(self._gather, loop, 0, _QUIET_TURNS)

    def _gather(self, loop: asyncio.AbstractEventLoop, seen: int, turns: int) -> None:
        """Start as soon as some turns of the event loop bring no more: what comes together is one batch."""
        if turns and self._queued < self.config.max_batch and self._running < self.config.workers:
            left = turns - 1 if self._queued == seen else _QUIET_TURNS
            loop.call_soon(self._gather, loop, self._queued, left)
            return
        self._gathering = False
        self._start_batches()

    def _sweep_waiting(self) -> None:
        self._expire()
        again = asyncio.get_running_loop().call_later
        self._sweep = again(_SWEEP_SECONDS, self._sweep_waiting) if self._waiting else None

    def _expire(self) -> None:
        """Give up what has waited too long."""
        now = time.monotonic()
        kept: deque[_Job] = deque()
        for job in self._waiting:
            if job.deadline is None or now < job.deadline or job.future.cancelled():
                kept.append(job)
                continue
            self._queued -= len(job.searches)
            job.future.set_exception(BusyError("deadline", "the deadline passed before work began"))
        self._waiting = kept

    async def _run(self, jobs: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        outcomes: list[list[Answer | QueryError] | Exception]
        try:
            outcomes = await loop.run_in_executor(self._threads, _work, jobs)
        except Exception as error:  # no thread could be started
            outcomes = [error for _ in jobs]
        finally:
            self._running -= 1
            self._begin_gathering(loop)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.future.done():  # given up
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        if self._watch is not None:
            done = [answer for part in outcomes if not isinstance(part, Exception) for answer in part]
            self._watch.batch_done(done)


async def _all(jobs: list[_Job]) -> list[list[Answer | QueryError]]:
    """Await every part of a request, so that no failed part is left unread."""
    parts = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
    for part in parts:
        if isinstance(part, BaseException):
            raise part
    return [part for part in parts if not isinstance(part, BaseException)]


def _work(jobs: list[_Job]) -> list[list[Answer | QueryError] | Exception]:
    """Answer a batch; where that fails each request is asked alone, so that a defect of one stays its own."""
    searches = [search for job in jobs for search in job.searches]
    try:
        answers = list(jobs[0].engine.answer_many(searches))
        if len(answers) != len(searches):  # some would get those of others
            raise RuntimeError(f"{len(searches)} searches were given {len(answers)} answers")
    except IndexUnavailableError as error:  # it would be for each of them too, after a wait each time
        return [error for _ in jobs]
    except Exception as error:
        if len(jobs) > 1:
            return [outcome for job in jobs for outcome in _work([job])]
        if isinstance(error, StopIteration):  # no future takes one
            return [RuntimeError(repr(error))]
        return [error]
    parts: list[list[Answer | QueryError] | Exception] = []
    for job in jobs:
        parts.append(answers[: len(job.searches)])
        del answers[: len(job.searches)]
    return parts
