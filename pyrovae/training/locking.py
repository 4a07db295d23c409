"""One run directory, one writer."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory's lock for the block; it says who does, and goes with the process.

    The lock is the operating system's on the file, where there is one: it falls with a process that
    is killed, so that a stale file is no lock. Without (Windows), the process that the file names
    is looked for.

    Raises:
        ValueError: another process holds it.
        OSError: the directory cannot be written to.
    """
    path = folder / LOCK
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            if not _taken(handle):
                raise ValueError(
                    f"expected {folder} to have one writer; {_holder(path)} writes to it: wait for "
                    "it, stop it, or name another --run (run=)"
                )
            with contextlib.suppress(OSError):
                if os.fstat(handle).st_ino == path.stat().st_ino:  # not one that was just removed
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(about).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def cannot_write(folder: Path, error: OSError) -> OSError:
    """Return an error that says of a directory why nothing can be written there."""
    why = error.strerror or error
    return OSError(f"cannot write to {folder}: {why}: name another --run (run=), or make it room")


def _taken(handle: int) -> bool:
    """Take the lock of an open file; return whether that was possible."""
    try:
        import fcntl
    except ImportError:
        return not _alive(os.read(handle, 4096))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return not _alive(os.read(handle, 4096))
    return True


def _alive(content: bytes) -> bool:
    """Does the process that a lock names run, as far as this machine can tell?"""
    try:
        about = json.loads(content)
        if about["host"] != socket.gethostname():
            return True
        if about["pid"] == os.getpid():
            return False
        os.kill(about["pid"], 0)
    except (ValueError, KeyError, TypeError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes())
        return f"process {about['pid']} of {about['host']}, since {about['since']},"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
