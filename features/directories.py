"""Directories that appear, change places and reach the disk whole."""

import ctypes
import errno
import os
import shutil
import uuid
from pathlib import Path

_HERE = -100  # AT_FDCWD of <fcntl.h>
_EXCHANGE = 2  # RENAME_EXCHANGE of <linux/fs.h>
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # this kernel or this file system


def replace_directory(staging: Path, path: Path) -> None:
    """Give a directory its final name; one that has it already goes."""
    if os.path.lexists(path):
        exchange(staging, path)
        remove(staging)
    else:
        staging.rename(path)
    sync_directory(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Let two entries of one file system change names, so that neither name is ever without one.

    Where the file system or the kernel cannot (renameat2(2), Linux), `other` is without one for a moment.

    Raises:
        OSError: If one is missing or may not be renamed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        code = errno.ENOSYS
    else:
        failed = renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
        code = ctypes.get_errno() if failed else 0
    if code in _CANNOT:
        aside = other.with_name(f".{other.name}.{uuid.uuid4().hex}")
        other.rename(aside)
        try:
            os.utime(aside)  # a sweep of what was abandoned goes by it
            one.rename(other)
        except OSError:
            aside.rename(other)
            raise
        aside.rename(one)
    elif code:
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder that may be going away by itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(directory: Path) -> None:
    """Bring a directory and all below it to the disk."""
    for entry in directory.rglob("*"):
        if entry.is_dir():
            sync_directory(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
