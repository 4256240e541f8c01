"""Signals without data loss: the first stops the loop after its step; a second Ctrl-C or SIGTERM at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from tellapart.errors import Stopped
from tellapart.runtime.openvino import drop_signal_stack

_FIRM = (signal.SIGINT, signal.SIGTERM)
# Sent by a closed terminal, and by batch systems such as Slurm some time before they end a job.
_SOFT = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Interrupt:
    """While entered, SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 set ``asked`` instead of ending the program.

    ``number`` is the first signal's. A second SIGINT or SIGTERM ends the program. SIGHUP, SIGUSR1 and SIGUSR2 stay as
    they are if they are ignored (nohup) or already have a handler.
    """

    def __init__(self) -> None:
        self.asked = False
        self.number = 0
        self._firmly = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            drop_signal_stack()  # otherwise Ctrl-C may crash if the process has used OpenVINO
            ours = (signal.SIG_DFL, stop)
            for number in (*_FIRM, *(number for number in _SOFT if signal.getsignal(number) in ours)):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._firmly and number in _FIRM:
            raise Stopped(number)
        self._firmly = self._firmly or number in _FIRM
        self.number = self.number or number
        self.asked = True


def stop(number: int, frame: FrameType | None) -> None:
    """End the program once the file being written is complete or removed: a signal handler."""
    raise Stopped(number)


def stop_on_signals() -> None:
    """Make signals that would end the program on the spot end it as Ctrl-C does, unless they have a handler."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, *_SOFT):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
