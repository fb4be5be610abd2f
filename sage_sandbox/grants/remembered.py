"""A file in the user's configuration folder that remembers what they said: read whole, written whole, under a lock."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import user_config
from sage_sandbox.errors import Locked, NotGranted, StateUnwritable, UsageError
from sage_sandbox.frozen import frozen

FORMAT: Final = 1
SIZE_MAX: Final = 4 << 20
LOCK_WAIT_S: Final = 10.0

R = TypeVar("R")
"""A dataclass."""


@frozen
class Kind:
    """One such file: ``NAME.json`` with ``NAME.lock`` beside it, its records under ``member``; words for its errors."""

    name: str
    member: str
    subject: str
    remedy: str


class Remembered(Generic[R]):
    """The records of one user. ``problem`` says why there can be none (empty: there can)."""

    kind: ClassVar[Kind]

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem = "" if folder else "no home folder is known: set HOME or XDG_CONFIG_HOME"

    @classmethod
    def of_user(cls, environ: Mapping[str, str] | None = None) -> Self:
        """In ``$XDG_CONFIG_HOME``, else ``~/.config``; home from HOME, else from the password database."""
        try:
            return cls(user_config(environ))
        except UsageError:
            return cls(None)

    def _read_record(self, raw: Mapping[str, Any]) -> R:
        """A record of its mapping; ValueError if it is none."""
        raise NotImplementedError

    def _load(self) -> tuple[R, ...]:
        """What is remembered; NotGranted if the file cannot be used."""
        try:
            data = self._read()
            return self._decode(data) if data is not None else ()
        except (OSError, ValueError, RecursionError, Untrusted) as error:
            raise self._unusable(error) from error

    def _read(self) -> bytes | None:
        """The file's bytes; None if there is none, or no folder that we may look into."""
        if self.folder is None:
            return None
        try:
            folder = Folder.open(self.folder)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None  # HOME is /dev/null, /nonexistent or somebody else's: then nothing was ever remembered there
        with folder, suppress(FileNotFoundError):
            return folder.read(self._file, SIZE_MAX)
        return None

    def _change(self, change: Callable[[Sequence[R]], Sequence[R]]) -> None:
        """Put other records in place, whole or not at all; OSError or NotGranted if that cannot be."""
        if self.folder is None:
            raise OSError(errno.ENOENT, self.problem)
        lock = f"{self.kind.name}.lock"
        try:
            with Folder.open(self.folder, make=True) as folder, acquire(folder, lock, wait_s=LOCK_WAIT_S):
                self._save(folder, change(self._load()))
        except Untrusted as error:
            raise self._unusable(error) from error
        except Locked as error:
            raise OSError(errno.EAGAIN, f"another process holds {self.folder / lock} ({error.owner})") from error
        except StateUnwritable as error:
            raise OSError(errno.EIO, error.message) from error

    @property
    def _file(self) -> str:
        return f"{self.kind.name}.json"

    def _save(self, folder: Folder, records: Sequence[R]) -> None:
        plain = [asdict(record) for record in records]  # type: ignore[call-overload]  # R is a dataclass
        content = {"version": FORMAT, self.kind.member: plain}
        data = json.dumps(content, indent=1).encode()
        if len(data) > SIZE_MAX:
            raise OSError(errno.EFBIG, "too much is remembered already")
        folder.sweep(f"{self._file}.")
        folder.write_new(self._file, data)
        folder.sync()

    def _decode(self, data: bytes) -> tuple[R, ...]:
        try:
            content = json.loads(data)
        except ValueError as error:
            raise ValueError("it is not JSON") from error
        if not isinstance(content, dict) or content.get("version") != FORMAT:
            raise ValueError("it is not in the format of this version")
        return tuple(self._read_record(as_mapping(raw)) for raw in as_list(content.get(self.kind.member)))

    def _unusable(self, error: Exception) -> NotGranted:
        assert self.folder is not None
        reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
        hint = error.hint if isinstance(error, Untrusted) else ""
        message = f"{self.kind.subject} in {self.folder / self._file} cannot be used: {reason}"
        return NotGranted(message, hint or f"mend the file, or remove it and {self.kind.remedy}")


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is a mapping; ValueError."""
    if isinstance(value, dict):
        return value
    raise ValueError("something in it should be a mapping and is not")


def as_list(value: Any) -> list[Any]:
    """The value, if it is a list; ValueError."""
    if isinstance(value, list):
        return value
    raise ValueError("something in it should be a list and is not")


def as_text(value: Any) -> str:
    """The value, if it is a text; ValueError."""
    if isinstance(value, str):
        return value
    raise ValueError("something in it should be a text and is not")
