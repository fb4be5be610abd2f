"""Signals of this process as something to wait for: a descriptor, or a call."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def cancel_on_signals(*, interrupt: bool = True) -> Iterator[int]:
    """A descriptor that becomes readable on SIGTERM or SIGHUP, and on SIGINT where ``interrupt``; undone at the end."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    numbers = [signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if interrupt else [])]
    before = {number: signal.signal(number, lambda *_: os.eventfd_write(fd, 1)) for number in numbers}
    try:
        yield fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(fd)


@contextmanager
def cancelled_by_signals(cancel: Callable[[], None]) -> Iterator[None]:
    """While this lasts, Ctrl-C, SIGTERM and a closed terminal call ``cancel`` instead of ending the process.

    What is ignored stays so: that is how nohup(1), and a process that was detached, outlive a terminal.
    """
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: cancel()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
