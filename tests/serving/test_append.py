import os
import subprocess
import sys

import pytest

from serving.append import append_lines

FULL = """
import resource, sys
from pathlib import Path
from serving.append import append_lines
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))  # as if the disk ended there
try:
    append_lines(Path(sys.argv[1]), ["x" * 90] * 5)
except OSError as error:
    print(error.strerror)
"""


def test_lines_that_do_not_fit_leave_the_file_as_it_was(tmp_path):
    path = tmp_path / "log"
    append_lines(path, ["a" * 89] * 10)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert path.read_bytes() == before
    append_lines(path, ["b"])
    assert path.read_bytes() == before + b"b\n"


@pytest.mark.parametrize("others", [b"", b"of another that takes no lock\n"])
def test_nothing_of_another_writer_is_cut_off(tmp_path, monkeypatch, others):
    path, write = tmp_path / "log", os.write
    append_lines(path, ["before"])

    def failing(file, data):
        if len(data) < 8:
            with path.open("ab") as other:
                other.write(others)
            raise OSError(28, "No space left on device")
        return write(file, data[:8])

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OSError, match="No space left"):
        append_lines(path, ["of this one"])
    monkeypatch.undo()
    append_lines(path, ["after"])
    part = b"of this " + others if others else b""
    assert path.read_bytes() == b"before\n" + part + b"after\n"
