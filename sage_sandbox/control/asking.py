"""Asking the process that carries out a run: how it stands, how it ends, that it end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sage_sandbox.control.lines import ANSWER_MAX, address, parse
from sage_sandbox.disk.files import Untrusted
from sage_sandbox.disk.places import project_place, runtime_folders
from sage_sandbox.disk.sockets import connect, peer_of
from sage_sandbox.errors import SageError
from sage_sandbox.escaping import clip
from sage_sandbox.frozen import frozen

CANCEL_S: Final = 30.0
_POLL_S: Final = 0.03
_NOBODY: Final = (FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError, Untrusted)


class NotAnswering(SageError):
    """Somebody is there, but did not answer in time: a process that was stopped, or is very busy."""


class NotRunning(SageError):
    """No process runs that feature, or none that listens."""


class NotCancelled(SageError):
    """A run that was asked to end broke off, and could not say how it ended."""


@frozen
class Cancelled:
    """How a run that was asked to end did so: ``status`` is "completed" if it was quicker than the request."""

    feature: str
    status: str
    at: str
    saved: bool


def ask(
    project_id: str,
    feature: str,
    request: Mapping[str, Any],
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Ask the process that runs a feature; None if there is none, or it ended without an answer.

    The requests are ``{"do": "status"}``, ``{"do": "wait"}`` and ``{"do": "cancel", "save": bool}``; a refused one is
    answered with ``{"error": …}``. NotAnswering if somebody is there, but says nothing in time.
    """
    until = time.monotonic() + timeout_s
    line = json.dumps(request).encode() + b"\n"
    for path in runtime_folders(environ):
        with suppress(*_NOBODY), _reach(path / address(project_id, feature), feature, until) as sock:
            if answer := _exchange(sock, line, feature, until):
                return _understood(answer, feature)
    return None


def cancel(
    project: Path,
    feature: str,
    *,
    save: bool = True,
    timeout_s: float = CANCEL_S,
    environ: Mapping[str, str] | None = None,
) -> Cancelled:
    """End a run wherever it is carried out, and wait until it has ended. NotRunning, NotAnswering, NotCancelled.

    Without ``save`` nothing is kept of the phases that are cut short; those that are done stay in any case.
    """
    place = project_place(project, environ, make=False)
    answer = None
    if place is not None:
        with place.folder:
            request = {"do": "cancel", "save": save}
            answer = ask(place.id, feature, request, timeout_s=timeout_s, environ=environ)
    match answer:
        case None:
            raise NotRunning(f"{feature} is not running", f"sage-sandbox status {feature}")
        case {"status": str(status), "cancelledAt": str(at), "checkpointSaved": bool(saved)}:
            return Cancelled(feature, status, at, saved)
    raise NotCancelled(f"{feature} was not cancelled: {clip(str(answer.get('error')), 200)}")


def _reach(path: Path, feature: str, until: float) -> socket.socket:
    """A connection to the socket at that place; else one of _NOBODY, or NotAnswering."""

    def dial(sock: socket.socket, path: str) -> None:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return
            except BlockingIOError:  # as many queue there as can; the kernel has nothing to wait on (EAGAIN, unix(7))
                if time.monotonic() >= until:
                    raise _not_answering(feature) from None
                time.sleep(_POLL_S)

    return connect(path, dial=dial)


def _exchange(sock: socket.socket, line: bytes, feature: str, until: float) -> bytes:
    """Say a line, and hear one: nothing if the other one has gone without a word."""
    answer = b""
    try:
        sock.settimeout(_left(until))
        sock.sendall(line)
        while b"\n" not in answer and len(answer) <= ANSWER_MAX:
            sock.settimeout(_left(until))
            if not (more := sock.recv(ANSWER_MAX + 2 - len(answer))):
                return b""
            answer += more
    except TimeoutError:
        raise _not_answering(feature, peer_of(sock).pid) from None
    return answer


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _not_answering(feature: str, pid: int = 0) -> NotAnswering:
    hint = f"if it was stopped, let it go on: kill -CONT {pid}" if pid else "it may be stopped"
    return NotAnswering(f"the process that runs {feature} does not answer", hint)


def _understood(answer: bytes, feature: str) -> dict[str, Any]:
    line, ends, _ = answer.partition(b"\n")
    if (found := parse(line)) is None or not ends:
        raise SageError(f"the process that runs {feature} gave an answer that is none")
    return found
