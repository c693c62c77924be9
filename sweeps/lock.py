"""Who writes into a folder of results: one run, or several shards of one.

The lock is one of the operating system's (`flock`), which ends with its process: a run that was
killed leaves none behind. Shards share the folder's lock and hold one of their own each.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from opbyte.core.errors import ConfigError

__all__ = ["Lock", "is_held"]

_MOST_TEXT = 400
_TRIES, _INSTANT_S = 5, 0.002
#: Folders of strangers may hold a link to a file that is not theirs, or a pipe.
_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Lock:
    """Keeps others from writing into a folder until it is released.

    Attributes:
        alone: Whether no other run can write into the folder meanwhile.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self.alone = False
        self._held: list[int] = []

    @classmethod
    def taken(cls, folder: Path, shard: tuple[int, int] = (1, 1)) -> Lock:
        """Return the lock of a folder, which is made if need be.

        Where the file system has no locks, or nothing can be written, nothing is held.

        Raises:
            ConfigError: If another run holds it, or it is no file of the folder.
        """
        lock = cls()
        part, parts = shard
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if parts == 1:
                lock._take(folder / ".lock", fcntl.LOCK_EX)
                lock.alone = True
            else:
                lock._take(folder / ".lock", fcntl.LOCK_SH)
                lock._take(folder / f".lock-{part}-of-{parts}", fcntl.LOCK_EX)
        except BlockingIOError:
            lock.release()
            rule = f"another run writes into this folder{_holder(folder)}"
            remedy = "Wait for it, end it, or choose another folder with --out."
            raise ConfigError.one(str(folder), "", rule, "", remedy) from None
        except ConfigError:
            lock.release()
            raise
        except OSError:
            lock.release()
        return lock

    def _take(self, file: Path, kind: int) -> None:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            rule = "a run locks its folder with this file, and it is none"
            raise ConfigError.one(str(file), "", rule, "", "Remove it.")
        self._held.append(os.open(file, os.O_RDWR | os.O_CREAT | _CAREFUL, 0o666))
        _locked(self._held[-1], kind)
        if kind == fcntl.LOCK_EX:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            about = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
            with contextlib.suppress(OSError):
                os.ftruncate(self._held[-1], 0)
                os.write(self._held[-1], json.dumps(about).encode())

    def release(self) -> None:
        """Let others in."""
        self.alone = False
        held, self._held = self._held, []
        for file in held:
            os.close(file)


def _locked(handle: int, kind: int) -> None:
    """Lock a file. Who only asks (`is_held`) holds it for an instant: try again.

    Raises:
        BlockingIOError: If another run holds it.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        time.sleep(_INSTANT_S)
    fcntl.flock(handle, kind | fcntl.LOCK_NB)


def _holder(folder: Path) -> str:
    """Return who holds a lock of a folder, as far as that is known."""
    for file in sorted(folder.glob(".lock*")):
        if is_held(file):
            try:
                about = json.loads(file.read_bytes()[:_MOST_TEXT])
                return f" (process {about['process']} on {about['host']}, since {about['since']})"
            except (OSError, ValueError, TypeError, KeyError):
                continue
    return ""


def is_held(file: Path) -> bool:
    """Return whether a run holds a lock for itself; no where that can not be asked."""
    handle = -1
    try:
        handle = os.open(file, os.O_RDONLY | _CAREFUL)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        if handle >= 0:
            os.close(handle)
    return False
