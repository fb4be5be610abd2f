"""What the user allowed for good: one file in the user's configuration folder, by project and template digest."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import user_config
from sage_sandbox.errors import Locked, NotGranted, StateUnwritable, UsageError
from sage_sandbox.grants.asks import all_asks
from sage_sandbox.grants.resolving import PATH_KINDS
from sage_sandbox.policy import Grant, parse_grant
from sage_sandbox.workflow.definition import Workflow

FILE_NAME: Final = "grants.json"
LOCK_NAME: Final = "grants.lock"
FORMAT: Final = 1
SIZE_MAX: Final = 4 << 20
DIGESTS_KEPT: Final = 8
"""How many versions of one template a project keeps allowed: enough for the branches somebody switches between."""
LOCK_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Record:
    """What was allowed for one template, byte for byte, in one project; ``asks`` is all it asked for then."""

    project: str
    template: str
    digest: str
    asks: tuple[str, ...]
    grants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """How a template's asks differ from when it was last allowed here."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


class Memory:
    """The remembered grants of one user. ``problem`` says why there can be none (empty: there can)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem = "" if folder else "no home folder is known: set HOME or XDG_CONFIG_HOME"

    @classmethod
    def of_user(cls, environ: Mapping[str, str] | None = None) -> Memory:
        """In ``$XDG_CONFIG_HOME``, else ``~/.config``; home from HOME, else from the password database."""
        try:
            return cls(user_config(environ))
        except UsageError:
            return cls(None)

    def recall(self, workflow: Workflow, project: Path) -> tuple[Grant, ...]:
        """What was allowed for exactly this template in exactly this project, resolved as it was then."""
        known = self._find(workflow, project)
        return tuple(parse_grant(text) for text in known.grants) if known else ()

    def what_changed(self, workflow: Workflow, project: Path) -> Change | None:
        """How the asks differ from this template's last known version; None if there is none, or it is this one."""
        if not workflow.source or not workflow.digest or self._find(workflow, project):
            return None
        now = _record(workflow, project, ())
        older = [known for known in self._load() if (known.project, known.template) == (now.project, now.template)]
        if not older:
            return None
        then = older[-1]
        new = tuple(ask for ask in now.asks if ask not in then.asks)
        return Change(new, tuple(ask for ask in then.asks if ask not in now.asks))

    def forgets(self, workflow: Workflow) -> str:
        """Why nothing can be remembered for this workflow, or empty."""
        return self.problem or ("" if workflow.digest else "the workflow does not come from a template file")

    def remember(self, workflow: Workflow, project: Path, grants: Iterable[Grant]) -> None:
        """Add resolved grants for this template in this project; OSError or NotGranted if that cannot be.

        Grants with a ``!`` are for one run and are left out.
        """
        if self.folder is None or self.forgets(workflow):
            raise OSError(errno.ENOENT, self.forgets(workflow))
        new = _record(workflow, project, tuple(str(grant) for grant in grants if not grant.forced))
        try:
            with Folder.open(self.folder, make=True) as folder, acquire(folder, LOCK_NAME, wait_s=LOCK_WAIT_S):
                _save(folder, _added(self._load(), new))
        except Untrusted as error:
            raise _unusable(self.folder / FILE_NAME, error) from error
        except Locked as error:
            raise OSError(errno.EAGAIN, f"another process holds {self.folder / LOCK_NAME} ({error.owner})") from error
        except StateUnwritable as error:
            raise OSError(errno.EIO, error.message) from error

    def _find(self, workflow: Workflow, project: Path) -> Record | None:
        if not workflow.digest:
            return None
        real = os.path.realpath(project)
        matching = (record for record in self._load() if (record.project, record.digest) == (real, workflow.digest))
        return next(matching, None)

    def _load(self) -> tuple[Record, ...]:
        if self.folder is None:
            return ()
        path = self.folder / FILE_NAME
        try:
            data = _read(path)
            return _decode(data) if data is not None else ()
        except (OSError, ValueError, RecursionError, Untrusted) as error:
            raise _unusable(path, error) from error


def _record(workflow: Workflow, project: Path, grants: tuple[str, ...]) -> Record:
    template = os.path.realpath(workflow.source) if workflow.source else ""
    asks = tuple(str(ask) for ask in all_asks(workflow))
    return Record(os.path.realpath(project), template, workflow.digest, asks, grants)


def _added(records: Sequence[Record], new: Record) -> list[Record]:
    """With the new record last, joined with what was known of the same digest; the oldest versions dropped."""
    same = next((record for record in records if (record.project, record.digest) == (new.project, new.digest)), None)
    if same:
        new = replace(new, grants=tuple(dict.fromkeys((*same.grants, *new.grants))))
    others = [record for record in records if record is not same]
    versions = [record for record in others if (record.project, record.template) == (new.project, new.template)]
    dropped = versions[: max(len(versions) - DIGESTS_KEPT + 1, 0)]
    return [*(record for record in others if record not in dropped), new]


def _save(folder: Folder, records: Sequence[Record]) -> None:
    """Put the records in place, whole or not at all; the lock is held."""
    data = json.dumps({"version": FORMAT, "records": [asdict(record) for record in records]}, indent=1).encode()
    if len(data) > SIZE_MAX:
        raise OSError(errno.EFBIG, "too much is remembered already")
    folder.sweep(f"{FILE_NAME}.")
    folder.write_new(FILE_NAME, data)
    folder.sync()


def _decode(data: bytes) -> tuple[Record, ...]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT:
        raise ValueError("it is not in the format of this version")
    return tuple(_decode_record(_mapping(record)) for record in _list(content.get("records")))


def _decode_record(raw: Mapping[str, Any]) -> Record:
    project, template, digest = (_text(raw.get(name)) for name in ("project", "template", "digest"))
    asks, grants = (tuple(_text(text) for text in _list(raw.get(name))) for name in ("asks", "grants"))
    for text in grants:
        _check_remembered(text)
    return Record(project, template, digest, asks, grants)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError("something in it should be a mapping and is not")


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ValueError("something in it should be a list and is not")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("something in it should be a text and is not")


def _check_remembered(text: str) -> None:
    try:
        grant = parse_grant(text)
    except UsageError as error:
        raise ValueError(f"{text!r} is not a grant") from error
    relative = grant.kind in PATH_KINDS and not grant.value.startswith("/")
    if grant.forced or relative:
        raise ValueError(f"{text!r} is not a grant that is ever remembered")


def _read(path: Path) -> bytes | None:
    """The file's bytes; None if there is none, or no folder that we may look into."""
    try:
        folder = Folder.open(path.parent)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # HOME is /dev/null, /nonexistent or somebody else's: then nothing was ever remembered there
    with folder, suppress(FileNotFoundError):
        return folder.read(path.name, SIZE_MAX)
    return None


def _unusable(path: Path, error: Exception) -> NotGranted:
    reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
    hint = error.hint if isinstance(error, Untrusted) else ""
    message = f"the remembered grants in {path} cannot be used: {reason}"
    return NotGranted(message, hint or "mend the file, or remove it and answer again")
