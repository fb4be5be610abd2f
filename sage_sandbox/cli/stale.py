"""The question on a terminal whether old answers may stand in for a tool server that is unavailable."""

from __future__ import annotations

import os
import select
import sys
import termios
from typing import TYPE_CHECKING, Final, TextIO

from sage_sandbox.escaping import escape
from sage_sandbox.observe.progress import ago

if TYPE_CHECKING:
    from sage_sandbox.brokering import AskStale

_LINE_MAX: Final = 4096


def terminal_stale_asker(stdin: TextIO | None = None, stderr: TextIO | None = None) -> AskStale | None:
    """Somebody to ask, if both ends are a terminal (default: the process's own)."""
    stdin, stderr = stdin or sys.stdin, stderr or sys.stderr
    if stdin is None or stderr is None or not (stdin.isatty() and stderr.isatty()):
        return None
    return lambda server, age_s, give_up_fd: ask(server, age_s, give_up_fd, stdin.fileno(), stderr)


def ask(server: str, age_s: float, give_up_fd: int, terminal: int, stderr: TextIO) -> bool:
    """Ask, and wait for one line that was typed after it, or for the run to end; anything but a clear yes is a no."""
    stderr.write(
        f"⚠ External API unavailable ({escape(server)}) · ✓ using cached data from {ago(age_s)} · continue? [y/n] "
    )
    stderr.flush()
    return _line(terminal, give_up_fd).strip().lower() in ("y", "yes")


def _line(terminal: int, give_up_fd: int) -> str:
    """One line that is typed from now on; empty if it has no end."""
    try:
        termios.tcflush(terminal, termios.TCIFLUSH)
    except termios.error:
        return ""
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    poll.register(give_up_fd, select.POLLIN)
    line = b""
    while not line.endswith(b"\n") and len(line) <= _LINE_MAX:
        ready = {fd for fd, _ in poll.poll()}
        if give_up_fd in ready or not (chunk := os.read(terminal, 1024)):
            return ""
        line += chunk
    return line.decode("utf-8", "replace") if line.endswith(b"\n") else ""
