import asyncio
import socket
import time

import pytest

from features.errors import ConfigError
from serving.siblings import Siblings, Tally


def test_siblings_tell_each_other_and_what_does_not_answer_whole_and_in_time_is_left_out(tmp_path):
    shared = Tally.memory(5)
    asking, telling, cut, hung, gone = (
        Siblings(tmp_path, place, 5, Tally(shared, place)) for place in range(1, 6)
    )

    async def ask() -> dict[int, bytes]:
        servers = [await one.listen(lambda: b"x 1\n") for one in (asking, telling)]
        assert telling.path.stat().st_mode & 0o777 == 0o600
        part = await asyncio.start_unix_server(
            lambda _, writer: (writer.write(b"x 1"), writer.close()), cut.path
        )
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(hung.path))
            silent.listen()
            told = await asking.ask()
        for server in (*servers, part):
            server.close()
        return told

    assert gone.is_alone()
    assert asyncio.run(ask()) == {2: b"x 1\n"}
    assert asking.is_alone()  # a socket that nobody listens to is nobody


def test_a_folder_too_long_for_sockets_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="set TMPDIR to a shorter path"):
        Siblings(tmp_path / ("d" * 100), 1, 2, Tally(Tally.memory(2), 1))


def test_a_process_that_says_no_more_how_many_connections_it_has_holds_nobody_up(monkeypatch):
    shared = Tally.memory(3)
    mine, gone, left = (Tally(shared, place) for place in (1, 2, 3))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for tally, count in ((mine, 9), (gone, 4), (left, 2)):
        tally.note(count)
    assert mine.lead() == 7
    left.leave()
    assert mine.lead() == 5
    now += 1.5
    mine.note(9)
    assert mine.lead() == 0
    gone.note(4)
    assert mine.lead() == 5
    now += 1.5
    assert mine.lead() == 0  # of all who are late nobody is ahead
