"""The connection between coordinator and worker: one Unix socket each, pickled frames with a length before them.

Pickle passes between our own two processes only. The first bytes on a connection are no pickle but the token that the
coordinator gave the worker's initializer, so nothing is unpickled from anybody who does not hold it.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Outcome

TOKEN_BYTES: Final = 32
_HELLO: Final = struct.Struct(f"!{TOKEN_BYTES}sii")
_LENGTH: Final = struct.Struct("!I")
HELLO_BYTES: Final = _HELLO.size
_PIECE: Final = 1 << 18


@frozen
class Hello:
    """Who is on the line."""

    token: bytes
    slot: int
    pid: int


@frozen
class Ready:
    """Up: the supervisor is prepared, or the machine withholds what it needs (``error``)."""

    error: tuple[str, str, str] | None = None


@frozen
class Ended:
    """One operation ended: ``cost_s`` is what it kept the slot busy for."""

    ticket: int
    outcome: Outcome
    cost_s: float


@frozen
class Report:
    """Up: what ended since the last report, and what begins now (0: nothing does)."""

    ended: tuple[Ended, ...] = ()
    started: int = 0


@frozen
class Returned:
    """Up: these were withdrawn before they began, and never will."""

    tickets: tuple[int, ...]


@frozen
class Withdraw:
    """Down: give back what has not begun; ``kill`` also ends one that runs, as cancelled."""

    tickets: tuple[int, ...]
    kill: bool


Frame = Ready | Report | Returned | Withdraw


def hello(token: bytes, slot: int) -> bytes:
    """The first bytes a worker sends."""
    return _HELLO.pack(token, slot, os.getpid())


def read_hello(data: bytes) -> Hello:
    """The first bytes, understood."""
    return Hello(*_HELLO.unpack(data))


def encode(frame: Frame) -> bytes:
    """A frame with its length before it."""
    body = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes as they came and give the frames they completed."""
        self._data += data
        frames: list[Frame] = []
        start = 0
        while len(self._data) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._data, start)[0]
            if len(self._data) < end:
                break
            # Our own worker's, proven by the token before the first frame.
            frames.append(pickle.loads(memoryview(self._data)[start + _LENGTH.size : end]))  # noqa: S301
            start = end
        del self._data[:start]
        return frames


def receive(connection: socket.socket) -> bytes:
    """The bytes that are there, waiting for some; empty when the other side is gone."""
    try:
        return connection.recv(_PIECE)
    except ConnectionError:
        return b""
