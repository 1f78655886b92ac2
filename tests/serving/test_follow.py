import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving import follow
from serving.follow import Follower
from serving.store import Store


@contextmanager
def following(store: Store) -> Iterator[Follower]:
    follower = Follower(store, poll_seconds=0.01)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def test_an_unforeseen_failure_is_said_once_and_tried_again_in_a_while(shop, monkeypatch, caplog, make):
    tries = []

    def failing(*arguments):
        tries.append(arguments)
        raise RuntimeError("out of order")

    monkeypatch.setattr(follow, "load", failing)
    with following(Store(shop)) as follower:
        make.wait_until(lambda: follower.refusal is not None, 5)
        time.sleep(0.3)
        assert len(tries) == 1
        assert "RuntimeError: out of order" in follower.refusal.message
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
        monkeypatch.undo()
        monkeypatch.setattr(follower, "_retry_at", 0.0)
        make.wait_until(lambda: follower.served is not None)
        assert follower.refusal is None


def test_a_pointer_that_stays_unreadable_is_said_once(tmp_path, caplog, make):
    store = Store(tmp_path)
    store.pointer.write_text("[" * 100_000)
    with following(store) as follower:
        make.wait_until(lambda: follower.refusal is not None, 5)
        time.sleep(0.3)
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None
