"""A worker's end of its egress proxy: starts it for the first operation that needs it, believes little of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sage_sandbox.egress import proxy
from sage_sandbox.egress.session import CONTACTS_MAX
from sage_sandbox.errors import SandboxUnavailable, UsageError
from sage_sandbox.hosts import HOST_MAX, parse_target
from sage_sandbox.outcome import Contact
from sage_sandbox.sandbox import steps

START_S: Final = 20.0
ANSWER_S: Final = 10.0
TEXT_MAX: Final = 500
DIED: Final = Contact("", 0, "failed", "the egress proxy died: what it let through is not known", "", 1)
# It imports this package from where we did, and nothing else is on its path afterwards.
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sage_sandbox.egress import proxy; "
    "proxy.main(int(sys.argv[2]), int(sys.argv[3]))"
)


class Gate:
    """One egress proxy, serving one operation after the other. Not thread-safe; lives as long as its worker."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def open(self, listener: int, granted: Sequence[str]) -> None:
        """Have what comes to ``listener`` (a descriptor, which stays the caller's) served under these net grants.

        SandboxUnavailable if there can be no proxy.
        """
        targets = [(target.host, target.port) for target in map(parse_target, granted)]
        order = {"order": "open", "granted": targets}
        if self._control is not None:
            with suppress(OSError):
                proxy.send(self._control, order, (listener,))
                return
            self.close()
        try:
            proxy.send(self._start(), order, (listener,))
        except OSError as error:
            self.close()
            raise _unavailable("it died") from error

    def shut(self) -> tuple[Contact, ...]:
        """End every connection of the operation; what it turned to."""
        if self._control is None:
            return (DIED,)
        try:
            proxy.send(self._control, {"order": "shut"})
            answer, _fds = proxy.receive(self._control)
            return contacts(answer["contacts"])
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            self.close()
            return (DIED,)

    def close(self) -> None:
        """End the proxy, and wait until it has ended."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        base = steps.UID_BASE if steps.identity().privileged else 0
        arguments = [str(Path(__file__).resolve().parents[2]), str(theirs.fileno()), str(base)]
        with theirs:
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8", "-c", _BOOT, *arguments],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._control = ours
        ours.settimeout(START_S)
        try:
            answer, _fds = proxy.receive(ours)
        except (OSError, EOFError, ValueError, TypeError) as error:
            self.close()
            raise _unavailable("it did not start") from error
        if "ready" not in answer:
            self.close()
            raise _unavailable(str(answer.get("failed"))[:TEXT_MAX])
        ours.settimeout(ANSWER_S)
        return ours


def try_one() -> None:
    """Start a proxy as a worker does, until it is confined and ready, and end it. SandboxUnavailable."""
    gate = Gate()
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            gate.open(listener.fileno(), ())
            if DIED in gate.shut():
                raise _unavailable("it died")
    finally:
        gate.close()


def _unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"the proxy that net grants go through cannot be had: {why}", "sage-sandbox doctor", "egress proxy"
    )


def contacts(raw: Any) -> tuple[Contact, ...]:
    """What a proxy says was tried; ValueError if it is nothing that one says."""
    if not isinstance(raw, list) or len(raw) > CONTACTS_MAX + 1:
        raise ValueError("no list of contacts")
    return tuple(map(_contact, raw))


_FIELDS: Final[Mapping[str, type]] = {
    "host": str, "port": int, "verdict": str, "why": str, "allow": str, "times": int, "sent": int, "received": int,
}  # fmt: skip


def _contact(raw: Any) -> Contact:
    if not isinstance(raw, dict) or any(type(raw.get(name)) is not kind for name, kind in _FIELDS.items()):
        raise ValueError("no contact")
    if raw["verdict"] not in ("allowed", "refused", "failed", "breaker") or len(raw["host"]) > HOST_MAX:
        raise ValueError("no contact")
    return Contact(
        **{name: raw[name] for name in _FIELDS} | {"why": raw["why"][:TEXT_MAX], "allow": _grant(raw["allow"])}
    )


def _grant(text: str) -> str:
    """A net grant as it would be typed, or nothing: it becomes a hint."""
    try:
        return f"net:{parse_target(text.removeprefix('net:'))}" if text else ""
    except UsageError:
        return ""
