"""Calls for pool tests, importable in workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

_here = threading.local()


def initialize(index: int, *args: object) -> None:
    _here.started = (index, *args, getattr(_here, "count", 0) + 1)


def started() -> object:
    return _here.started


def add(one: int, other: int) -> int:
    return one + other


def fail(text: str) -> None:
    raise ValueError(text)


def leave_the_process() -> None:
    raise SystemExit(3)


def pid() -> int:
    return os.getpid()


def environ() -> dict[str, str]:
    return dict(os.environ)


def module_path() -> list[str]:
    return sys.path


def sigint_is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def wait_for_end_of(fifo: str) -> str:
    """Block until the writer of a FIFO has hung up."""
    return Path(fifo).read_text()


def append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)
