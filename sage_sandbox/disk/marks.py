"""A mark: how far something had come, kept where a torn write cannot take it away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import StateCorrupted

SLOT: Final = 256
_LOOKS: Final = 3


class _Record(NamedTuple):
    counter: int
    fields: tuple[str, ...]


_NOTHING: Final = _Record(0, ())


class Mark:
    """A small record in two slots; a write replaces the older one in place, so the newer one is always whole.

    Writers take turns by a lock of their own; readers need none.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def open(cls, folder: Folder, name: str, *, make: bool = False) -> Self:
        """Open for reading; with ``make`` for writing too, and made where there is none."""
        flags = os.O_RDWR if make else os.O_RDONLY
        try:
            fd = folder.open_file(name, flags)
        except FileNotFoundError:
            if not make:
                raise
            folder.write_new(name, _slot(_NOTHING) * 2)
            folder.sync()
            fd = folder.open_file(name, flags)
        return cls(fd, str(Path(folder.path, name)))

    def read(self) -> tuple[str, ...] | None:
        """The fields as they were last written; None if nothing ever was. StateCorrupted if neither slot is whole."""
        newest = max(self._valid().values())
        return newest.fields if newest.counter else None

    def write(self, fields: Sequence[str], *, sync: bool = False) -> None:
        """Replace the record. Without ``sync`` a power cut may leave the one before it."""
        valid = self._valid()
        data = _slot(_Record(max(valid.values()).counter + 1, _checked(fields)))
        if len(data) > SLOT:
            raise ValueError(f"a mark of {len(data)} bytes does not fit into {SLOT}")
        older = min((0, SLOT), key=lambda start: valid[start].counter if start in valid else -1)
        _overwrite(self._fd, data, older)
        if sync:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _valid(self) -> dict[int, _Record]:
        """The records that are whole, by where they start."""
        for _ in range(_LOOKS):  # a writer may overtake one look by two writes, hardly three
            data = os.pread(self._fd, 2 * SLOT, 0)
            parsed = {start: _parse(data[start : start + SLOT]) for start in (0, SLOT)}
            if valid := {start: record for start, record in parsed.items() if record}:
                return valid
        raise StateCorrupted(f"{self.path} is damaged", "", self.path)


def _checked(fields: Sequence[str]) -> tuple[str, ...]:
    for field in fields:
        if not field or " " in field or not (field.isascii() and field.isprintable()):
            raise ValueError(f"{field!r} is not a field of a mark")
    return tuple(fields)


def _slot(record: _Record) -> bytes:
    """``counter fields… checksum``, padded with spaces to the slot's size, a line of its own."""
    text = " ".join((str(record.counter), *record.fields))
    checksum = hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
    return f"{text} {checksum}".ljust(SLOT - 1).encode("ascii") + b"\n"


def _parse(data: bytes) -> _Record | None:
    """The record, if these are exactly the bytes that would be written for it."""
    text, _, _ = data.decode("latin-1").rstrip(" \n").rpartition(" ")
    counter, *fields = text.split(" ")
    if not (text.isascii() and counter.isdigit()):
        return None
    record = _Record(int(counter), tuple(fields))
    return record if _slot(record) == data else None


def _overwrite(fd: int, data: bytes, start: int) -> None:
    while data:
        done = os.pwrite(fd, data, start)
        data, start = data[done:], start + done
