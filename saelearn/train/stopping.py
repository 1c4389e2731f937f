"""Ctrl-C between two steps, never inside one.

Python raises KeyboardInterrupt wherever it happens to be: after the weights have moved, say, and
before the step was counted. Inside the block the signal is only noted, and the loop asks for it
when all is consistent. Pressed again, a second later or more, it interrupts at once.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType


class Stop:
    """`with Stop() as stop:`, then ask `stop.requested` between the steps."""

    def __init__(self) -> None:
        self.requested = False
        self._since = float("inf")
        self._before = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._since > 1:  # torchrun passes one Ctrl-C on twice
            raise KeyboardInterrupt
        self._since = min(self._since, now)
        self.requested = True
