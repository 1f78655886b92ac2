import asyncio
import socket

import pytest

from features.errors import ConfigError
from serving.siblings import Siblings


def test_siblings_tell_each_other_and_what_does_not_answer_whole_and_in_time_is_left_out(tmp_path):
    asking, telling, cut, hung, gone = (Siblings(tmp_path, place, 5) for place in range(1, 6))

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
        Siblings(tmp_path / ("d" * 100), 1, 2)
