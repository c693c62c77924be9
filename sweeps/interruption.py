"""Ctrl-C ends a run, also where other code takes the exception for an error of its own.

A KeyboardInterrupt is raised wherever the program happens to be. The dispatcher of a compiled
kernel, or a user's unit that catches everything, may answer it with another exception: the point
would be stored as failed, and the run would go on.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """Remembers that SIGINT or SIGTERM was heard, until it is closed.

    Signals that somebody else handles, and those of other threads than the main one, are left to
    them.
    """

    def __init__(self) -> None:
        """Listen from now on."""
        self._heard = False
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is signal.default_int_handler:
                self._before[number] = before
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        signal.default_int_handler(number, frame)

    def check(self) -> None:
        """Raise if an interruption was heard, whatever became of its exception.

        Raises:
            KeyboardInterrupt: If it was.
        """
        if self._heard:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())
