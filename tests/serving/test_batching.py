import asyncio
import threading
import time

import faiss
import pytest

from serving.batching import DEADLINE, Batcher, BatchingConfig, BusyError
from serving.milvus_collection import IndexUnavailableError
from serving.retriever import QueryError
from serving.search import Answer, Search


class Slow:
    """An engine that notes its batches and can be held in the middle of one."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()

    def answer_many(self, searches: list[Search]) -> list[Answer | QueryError]:
        self.batches.append([search.text or "" for search in searches])
        assert self.go.wait(10)
        if any(search.text == "defect" for search in searches):
            raise ZeroDivisionError
        if any(search.text == "gone" for search in searches):
            raise IndexUnavailableError("no answer")
        return [self.one(search) for search in searches]

    def one(self, search: Search) -> Answer | QueryError:
        if search.text == "bad":
            return QueryError("empty_query", "bad")
        return Answer([], len(search.text or ""), [search.text or ""], 0.0, 0.0)


def texts(*words: str) -> list[Search]:
    return [Search(text=word) for word in words]


async def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def held(batcher: Batcher, engine: Slow) -> asyncio.Task:
    """Start a search and hold the worker in it."""
    engine.go.clear()
    first = asyncio.create_task(batcher.answer(engine, texts("first")))
    await until(lambda: engine.batches == [["first"]])
    return first


def test_what_arrives_while_the_worker_is_busy_is_the_next_batch_and_each_gets_its_own_answer():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        first = await held(batcher, engine)
        later = [asyncio.create_task(batcher.answer(engine, texts(f"{n}", f"{n}{n}"))) for n in range(5)]
        await until(lambda: batcher.depth == 10)
        engine.go.set()
        assert [answer.unknown for answer in await first] == [["first"]]
        for n, task in enumerate(later):
            assert [answer.unknown for answer in await task] == [[f"{n}"], [f"{n}{n}"]]
        assert [len(batch) for batch in engine.batches] == [1, 10]
        assert batcher.depth == 0
        await batcher.close()

    asyncio.run(run())


def test_a_batch_never_mixes_engines_and_nobody_is_passed_by_for_ever():
    async def run() -> None:
        batcher, old, new = Batcher(BatchingConfig(max_batch=3)), Slow(), Slow()
        first = await held(batcher, old)
        tasks = [
            asyncio.create_task(batcher.answer(engine, texts(word)))
            for engine, word in ((old, "a"), (new, "b"), (old, "c"), (new, "d"), (old, "e"), (old, "f"))
        ]
        await until(lambda: batcher.depth == 6)
        old.go.set()
        await asyncio.gather(first, *tasks)
        assert old.batches == [["first"], ["a", "c", "e"], ["f"]]
        assert new.batches == [["b", "d"]]
        await batcher.close()

    asyncio.run(run())


def test_a_request_larger_than_a_batch_is_answered_in_parts_in_its_order():
    async def run() -> None:
        batcher, engine = Batcher(BatchingConfig(max_batch=4, max_queue=5)), Slow()
        words = [f"w{n}" for n in range(10)]
        answers = await batcher.answer(engine, texts(*words))
        assert [answer.unknown[0] for answer in answers] == words
        assert [len(batch) for batch in engine.batches] == [4, 4, 2]
        assert await batcher.answer(engine, []) == []
        await batcher.close()

    asyncio.run(run())


def test_the_queue_holds_as_many_as_it_may_and_refuses_one_more():
    async def run() -> None:
        batcher, engine = Batcher(BatchingConfig(max_queue=3)), Slow()
        first = await held(batcher, engine)
        waiting = [asyncio.create_task(batcher.answer(engine, texts("x"))) for _ in range(3)]
        await until(lambda: batcher.depth == 3)
        with pytest.raises(BusyError, match="wait already") as refused:
            await batcher.answer(engine, texts("y"))
        assert refused.value.code == "queue_full"
        engine.go.set()
        await asyncio.gather(first, *waiting)
        await batcher.close()
        assert ["y"] not in engine.batches

    asyncio.run(run())


def test_who_is_past_the_deadline_or_gone_costs_no_work():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        first = await held(batcher, engine)

        async def late() -> None:
            DEADLINE.set(time.monotonic() + 0.01)
            await batcher.answer(engine, texts("late"))

        expired = asyncio.create_task(late())
        gone = asyncio.create_task(batcher.answer(engine, texts("gone")))
        kept = asyncio.create_task(batcher.answer(engine, texts("kept")))
        await until(lambda: batcher.depth == 3)
        gone.cancel()
        await asyncio.sleep(0.02)
        engine.go.set()
        with pytest.raises(BusyError, match="deadline"):
            await expired
        await asyncio.gather(first, kept)
        assert engine.batches == [["first"], ["kept"]]
        assert batcher.depth == 0
        await batcher.close()

    asyncio.run(run())


def test_a_refused_search_and_a_defect_stay_with_the_request_that_brought_them():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        first = await held(batcher, engine)
        tasks = [
            asyncio.create_task(batcher.answer(engine, texts(*words)))
            for words in (("good", "bad"), ("defect",), ("fine",))
        ]
        await until(lambda: batcher.depth == 4)
        engine.go.set()
        good, defect, fine = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert [type(answer) for answer in good] == [Answer, QueryError]
        assert isinstance(defect, ZeroDivisionError)
        assert fine[0].unknown == ["fine"]
        await batcher.close()

    asyncio.run(run())


class Odd(Slow):
    """An engine with two defects of its own kind."""

    def answer_many(self, searches: list[Search]) -> list[Answer | QueryError]:
        answers = super().answer_many(searches)
        if any(search.text == "stop" for search in searches):
            raise StopIteration
        return answers[1:] if any(search.text == "short" for search in searches) else answers


@pytest.mark.parametrize("odd", ["stop", "short"])
def test_neither_an_answer_too_few_nor_an_error_that_no_future_takes_reaches_others(odd: str):
    async def run() -> None:
        batcher, engine = Batcher(), Odd()
        first = await held(batcher, engine)
        tasks = [asyncio.create_task(batcher.answer(engine, texts(word))) for word in ("a", odd, "b")]
        await until(lambda: batcher.depth == 3)
        engine.go.set()
        outcomes = await asyncio.wait_for(asyncio.gather(first, *tasks, return_exceptions=True), 5)
        assert isinstance(outcomes[2], RuntimeError)
        assert [outcomes[n][0].unknown for n in (0, 1, 3)] == [["first"], ["a"], ["b"]]
        await batcher.close()

    asyncio.run(run())


def test_a_batch_for_which_there_is_no_thread_is_told_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch,
):
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        with monkeypatch.context() as patch:
            patch.setattr(batcher._threads, "submit", no_thread)
            asked = [batcher.answer(engine, texts(word)) for word in ("a", "b")]
            outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [str(outcome) for outcome in outcomes] == ["can't start new thread"] * 2
        assert [answer.unknown for answer in await batcher.answer(engine, texts("c"))] == [["c"]]
        await batcher.close()

    asyncio.run(run())


def test_who_goes_while_the_batch_runs_takes_no_answer_from_the_others():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        engine.go.clear()
        tasks = [asyncio.create_task(batcher.answer(engine, texts(word))) for word in ("a", "b", "c")]
        await until(lambda: engine.batches == [["a", "b", "c"]])
        tasks[0].cancel()
        await asyncio.sleep(0)
        engine.go.set()
        assert [answer.unknown for answer in await asyncio.wait_for(tasks[1], 5)] == [["b"]]
        assert [answer.unknown for answer in await asyncio.wait_for(tasks[2], 5)] == [["c"]]
        await batcher.close()

    asyncio.run(run())


def test_who_went_and_is_past_the_deadline_too_keeps_nobody_waiting():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        first = await held(batcher, engine)
        token = DEADLINE.set(time.monotonic() + 0.05)
        gone = asyncio.create_task(batcher.answer(engine, texts("gone early")))
        DEADLINE.reset(token)
        later = asyncio.create_task(batcher.answer(engine, texts("later")))
        await until(lambda: batcher.depth == 2)
        gone.cancel()
        await asyncio.sleep(0.1)
        engine.go.set()
        await first
        assert [answer.unknown for answer in await asyncio.wait_for(later, 5)] == [["later"]]
        assert engine.batches == [["first"], ["later"]]
        await batcher.close()

    asyncio.run(run())


def test_two_workers_answer_two_batches_at_the_same_time():
    async def run() -> None:
        batcher, engine = Batcher(BatchingConfig(workers=2)), Slow()
        engine.go.clear()
        tasks = []
        for count, word in enumerate("ab", 1):
            tasks.append(asyncio.create_task(batcher.answer(engine, texts(word))))
            await until(lambda count=count: len(engine.batches) == count)
        engine.go.set()
        await asyncio.gather(*tasks)
        await batcher.close()

    asyncio.run(run())


def test_an_index_that_does_not_answer_is_not_asked_again_for_each_request_of_the_batch():
    async def scenario():
        engine, batcher = Slow(), Batcher()
        first = await held(batcher, engine)
        others = [asyncio.create_task(batcher.answer(engine, texts(word))) for word in ("a", "gone", "c")]
        await until(lambda: batcher.depth == 3)
        engine.go.set()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        return engine.batches, [type(outcome) for outcome in outcomes]

    batches, kinds = asyncio.run(scenario())
    assert batches == [["first"], ["a", "gone", "c"]]
    assert kinds == [list, *[IndexUnavailableError] * 3]


def test_faiss_has_as_many_threads_in_a_batch_as_it_is_given():
    class Counting(Slow):
        def one(self, search: Search) -> Answer | QueryError:
            return Answer([], faiss.omp_get_max_threads(), [], 0.0, 0.0)

    async def run() -> None:
        for threads in (1, 3):
            batcher = Batcher(threads=threads)
            [answer] = await batcher.answer(Counting(), texts("a"))
            assert isinstance(answer, Answer)
            assert answer.k == threads
            await batcher.close()

    asyncio.run(run())


def test_who_waits_past_the_deadline_hears_so_while_the_worker_is_still_busy():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        first = await held(batcher, engine)
        DEADLINE.set(time.monotonic() + 0.05)
        with pytest.raises(BusyError, match="deadline"):
            await asyncio.wait_for(batcher.answer(engine, texts("late")), timeout=5)
        assert (batcher.depth, first.done()) == (0, False)
        engine.go.set()
        await first
        await batcher.close()

    asyncio.run(run())


def test_what_comes_in_the_same_turns_of_the_loop_is_one_batch():
    async def run() -> None:
        batcher, engine = Batcher(), Slow()
        await asyncio.gather(*(batcher.answer(engine, texts(f"{n}")) for n in range(5)))
        assert [len(batch) for batch in engine.batches] == [5]
        await batcher.close()

    asyncio.run(run())


def test_what_was_asked_just_before_the_end_is_answered():
    async def run() -> None:
        batcher = Batcher()
        asked = asyncio.create_task(batcher.answer(Slow(), texts("a")))
        await asyncio.sleep(0)
        await batcher.close()
        assert len(await asyncio.wait_for(asked, timeout=5)) == 1

    asyncio.run(run())
