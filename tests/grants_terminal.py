"""A real terminal for a question: what is shown on it, and a hand that types once it is asked."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Callable
from typing import TextIO, TypeVar

import pytest

T = TypeVar("T")


def answering(keys: bytes, act: Callable[[TextIO, TextIO], T]) -> tuple[T, str]:
    """Let ``act`` ask on a terminal and type ``keys`` when it listens; what it made of that, and what was shown."""
    hand, end = pty.openpty()
    shown = bytearray()
    flush, listens = termios.tcflush, threading.Event()

    def flush_and_tell(descriptor: int, queue: int) -> None:
        flush(descriptor, queue)
        listens.set()

    def type_keys() -> None:
        while b"[n] " not in shown:
            shown.extend(os.read(hand, 4096))
        listens.wait(10)
        os.write(hand, keys)

    typist = threading.Thread(target=type_keys)
    stdin = os.fdopen(end, encoding="utf-8", closefd=False)
    stderr = os.fdopen(end, "w", encoding="utf-8", closefd=False)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(termios, "tcflush", flush_and_tell)
            typist.start()
            answer = act(stdin, stderr)
            typist.join()
    finally:
        os.close(hand)
        os.close(end)
    return answer, shown.decode()
