"""Which tool servers the user approved: a file in the user's configuration folder, by project, name and digest.

A definition is the project's word only. Nothing is started, contacted or expanded for it before its user has seen it
and said yes; what they said yes to is remembered by its digest, so a definition that changes is asked about again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import user_config
from sage_sandbox.errors import Locked, NotGranted, StateUnwritable, UsageError
from sage_sandbox.grants.asking_servers import ServerAsker, ServerQuestion
from sage_sandbox.grants.asks import quote
from sage_sandbox.toolservers.definition import Server

FILE_NAME: Final = "servers.json"
LOCK_NAME: Final = "servers.lock"
FORMAT: Final = 1
SIZE_MAX: Final = 4 << 20
DIGESTS_KEPT: Final = 8
"""How many versions of one definition a project keeps approved: enough for the branches somebody switches between."""
LOCK_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Record:
    """One definition that was approved in one project."""

    project: str
    name: str
    digest: str


class Approvals:
    """The approved definitions of one user. ``problem`` says why there can be none (empty: there can)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem = "" if folder else "no home folder is known: set HOME or XDG_CONFIG_HOME"

    @classmethod
    def of_user(cls, environ: Mapping[str, str] | None = None) -> Approvals:
        """In ``$XDG_CONFIG_HOME``, else ``~/.config``; home from HOME, else from the password database."""
        try:
            return cls(user_config(environ))
        except UsageError:
            return cls(None)

    def holds(self, server: Server, project: Path) -> bool:
        """Whether exactly this definition was approved in exactly this project."""
        return Record(os.path.realpath(project), server.name, server.digest) in self._load()

    def knew(self, server: Server, project: Path) -> bool:
        """Whether another definition of this name was approved here."""
        real = os.path.realpath(project)
        return any((known.project, known.name) == (real, server.name) for known in self._load())

    def add(self, servers: Iterable[Server], project: Path) -> None:
        """Remember definitions as approved; OSError or NotGranted if that cannot be."""
        if self.folder is None:
            raise OSError(errno.ENOENT, self.problem)
        real = os.path.realpath(project)
        new = [Record(real, server.name, server.digest) for server in servers]
        try:
            with Folder.open(self.folder, make=True) as folder, acquire(folder, LOCK_NAME, wait_s=LOCK_WAIT_S):
                _save(folder, _added(self._load(), new))
        except Untrusted as error:
            raise _unusable(self.folder / FILE_NAME, error) from error
        except Locked as error:
            raise OSError(errno.EAGAIN, f"another process holds {self.folder / LOCK_NAME} ({error.owner})") from error
        except StateUnwritable as error:
            raise OSError(errno.EIO, error.message) from error

    def _load(self) -> tuple[Record, ...]:
        if self.folder is None:
            return ()
        path = self.folder / FILE_NAME
        try:
            with Folder.open(self.folder) as folder:
                return _decode(folder.read(FILE_NAME, SIZE_MAX))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return ()  # no such folder, or none that we may look into: nothing was ever remembered there
        except (OSError, ValueError, RecursionError, Untrusted) as error:
            raise _unusable(path, error) from error


def approve_servers(
    servers: Sequence[Server], project: Path, *, approvals: Approvals, ask: ServerAsker | None
) -> tuple[str, ...]:
    """Have every definition approved, or raise NotGranted with what to type; what the user should know besides."""
    unknown = [server for server in servers if not approvals.holds(server, project)]
    if not unknown:
        return ()
    if ask is None:
        raise refusal(unknown)
    question = ServerQuestion(
        tuple(unknown), tuple(server.name for server in unknown if approvals.knew(server, project))
    )
    if not ask(question):
        raise refusal(unknown)
    try:
        approvals.add(unknown, project)
    except OSError as error:
        return (f"the approval could not be remembered: {error.strerror or error}",)
    return ()


def refusal(servers: Sequence[Server]) -> NotGranted:
    """The error of servers that nobody approved."""
    commands = tuple(f"sage-sandbox tools --approve {quote(server.name)}" for server in servers)
    names = ", ".join(server.name for server in servers)
    many = len(servers) > 1
    message = f"{names}: {'these tool servers are' if many else 'this tool server is'} not approved"
    hint = f"see what it is with sage-sandbox tools; if you trust it: {commands[0]}"
    return NotGranted(f"{message}, so nothing was started or contacted", hint, commands)


def _added(records: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """With the new records last; of each server the oldest versions dropped."""
    kept = [record for record in records if record not in new] + list(dict.fromkeys(new))
    for record in new:
        versions = [known for known in kept if (known.project, known.name) == (record.project, record.name)]
        for old in versions[: max(len(versions) - DIGESTS_KEPT, 0)]:
            kept.remove(old)
    return kept


def _save(folder: Folder, records: Sequence[Record]) -> None:
    """Put the records in place, whole or not at all; the lock is held."""
    data = json.dumps({"version": FORMAT, "servers": [asdict(record) for record in records]}, indent=1).encode()
    if len(data) > SIZE_MAX:
        raise OSError(errno.EFBIG, "too much is remembered already")
    folder.sweep(f"{FILE_NAME}.")
    folder.write_new(FILE_NAME, data)
    folder.sync()


def _decode(data: bytes) -> tuple[Record, ...]:
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != FORMAT:
        raise ValueError("it is not in the format of this version")
    servers = content.get("servers")
    if not isinstance(servers, list):
        raise ValueError("something in it should be a list and is not")  # noqa: TRY004 - of a file, not of an argument
    return tuple(_decode_record(raw) for raw in servers)


def _decode_record(raw: Any) -> Record:
    fields = [raw.get(name) if isinstance(raw, dict) else None for name in ("project", "name", "digest")]
    project, name, digest = (field if isinstance(field, str) else "" for field in fields)
    if not (project and name and digest):
        raise ValueError("something in it should be a text and is not")
    return Record(project, name, digest)


def _unusable(path: Path, error: Exception) -> NotGranted:
    reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
    hint = error.hint if isinstance(error, Untrusted) else ""
    message = f"the approved servers in {path} cannot be used: {reason}"
    return NotGranted(message, hint or "mend the file, or remove it and approve them again")
