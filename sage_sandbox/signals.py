"""Signals of this process as something to wait for: a descriptor, or a call.

Python runs a handler between two bytecodes of the main thread. A signal that comes just before that thread enters a
system call, or that the kernel gives to another thread, is only noted, and its handler waits as long as the call does.
So nothing is left to handlers here: the interpreter writes a byte for each signal the moment it comes
(`signal.set_wakeup_fd`), and a thread reads them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cancel_on_signals(*, interrupt: bool = True) -> Iterator[int]:
    """A descriptor that becomes readable on SIGTERM or SIGHUP, and on SIGINT where ``interrupt``; undone at the end."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    numbers = [number for number in _ENDING if interrupt or number != signal.SIGINT]
    try:
        with _calling(partial(os.eventfd_write, fd, 1), numbers):
            yield fd
    finally:
        os.close(fd)


@contextmanager
def cancelled_by_signals(cancel: Callable[[], None]) -> Iterator[None]:
    """While this lasts, Ctrl-C, SIGTERM and a closed terminal call ``cancel``, from a thread, and end nothing.

    What is ignored stays so: that is how nohup(1), and a process that was detached, outlive a terminal.
    """
    with _calling(cancel, [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]):
        yield


@contextmanager
def _calling(call: Callable[[], None], numbers: Collection[int]) -> Iterator[None]:
    """Have these signals call something, in a thread of its own."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_obey, args=(reading, call, numbers), name="sage-signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        thread.join()
        os.close(reading)


def _obey(reading: int, call: Callable[[], None], numbers: Collection[int]) -> None:
    while came := os.read(reading, 64):
        if not set(numbers).isdisjoint(came):
            call()


def _noted(_number: int, _frame: object) -> None:
    """A handler has to be there for the byte to be written."""
