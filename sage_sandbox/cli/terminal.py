"""A terminal of an operation's own, with the user's behind it."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_terminal() -> Iterator[tuple[int, int]]:
    """A new pseudo-terminal: (the operation's end, ours). The user's own, if stdin is one, is raw until the end."""
    controller, terminal = os.openpty()
    os.set_blocking(controller, False)
    before = None
    if os.isatty(0):
        before = termios.tcgetattr(0)
        termios.tcsetwinsize(terminal, termios.tcgetwinsize(0))
        tty.setraw(0)
    try:
        yield terminal, controller
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
        for fd in (controller, terminal):
            os.close(fd)
