"""Artifacts come into place once the checkpoint that names them is durable: ``<name>.tmp`` becomes ``<name>``.

Before that checkpoint is written, `keep` makes their names durable: what it names is never lost to a power cut.

Until then a killed run leaves a ``.tmp`` folder: a resume finishes the move where the checkpoint is there and the files
are what it says, and removes the folder otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from sage_sandbox.disk.files import Folder, sage_folder, unwritable
from sage_sandbox.errors import StateCorrupted
from sage_sandbox.outcome import Artifact, Outcome

PENDING: Final = ".tmp"


def keep(project: Path, feature: str, phase: str, operations: Iterable[tuple[str, Outcome]]) -> None:
    """Make the names durable under which workers left a phase's files; the files are. StateUnwritable, Untrusted.

    Here and not where a folder is made: of two workers, one that finds a folder may be quicker than its maker's fsync.
    """
    if not any(outcome.artifacts for _, outcome in operations):
        return
    for names in ((), ("artifacts",), ("artifacts", feature), ("artifacts", feature, phase)):
        try:
            with sage_folder(project, *names) as folder:
                folder.sync()
        except OSError as error:
            raise unwritable(error, str(Path(project, ".sage", *names))) from error


def publish(project: Path, feature: str, phase: str, operations: Iterable[tuple[str, Outcome]]) -> None:
    """Put what the fulfilled operations of a phase left into place, in the place of what an earlier run left there.

    StateUnwritable; Untrusted where the project has put something else than a folder. What an earlier process put into
    place already, and somebody took away since, is not missed.
    """
    left = [name for name, outcome in operations if outcome.artifacts]
    if not left:
        return
    with _opened(project, feature, phase) as folder:
        if folder is not None:
            pending = set(folder.names())
            for name in left:
                if f"{name}{PENDING}" in pending:
                    _move_in(folder, name)
            folder.sync()


def settle(project: Path, feature: str, committed: Mapping[str, Iterable[tuple[str, Outcome]]]) -> None:
    """Finish or undo the moves that a killed run had begun. StateUnwritable, Untrusted."""
    with _opened(project, feature) as top:
        for phase in top.names() if top is not None else ():
            with suppress(StateCorrupted), _opened(project, feature, phase) as folder:
                if folder is not None:
                    _settle_phase(folder, committed.get(phase, ()))


@contextmanager
def _opened(project: Path, *names: str) -> Iterator[Folder | None]:
    """A folder of artifacts, None if there is none."""
    try:
        folder = sage_folder(project, "artifacts", *names)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise unwritable(error, str(Path(project, ".sage", "artifacts", *names))) from error
    with folder:
        try:
            yield folder
        except OSError as error:
            raise unwritable(error, folder.path) from error


def _settle_phase(folder: Folder, operations: Iterable[tuple[str, Outcome]]) -> None:
    pending = [name for name in folder.names() if name.endswith(PENDING)]
    outcomes = dict(operations) if pending else {}
    for name in pending:
        outcome = outcomes.get(name.removesuffix(PENDING))
        if outcome is not None and outcome.artifacts and _is_what_was_committed(folder, name, outcome.artifacts):
            _move_in(folder, name.removesuffix(PENDING))
        else:
            _remove(folder, name)
    if pending:
        folder.sync()


def _move_in(folder: Folder, name: str) -> None:
    _remove(folder, name)
    folder.rename(f"{name}{PENDING}", folder, name)


def _remove(folder: Folder, name: str) -> None:
    """Take away whatever stands there, without following a link."""
    try:
        folder.remove(name)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=folder.fd)
    except FileNotFoundError:
        return


def _is_what_was_committed(folder: Folder, pending: str, artifacts: Iterable[Artifact]) -> bool:
    """Whether the files are exactly those that the checkpoint names: another attempt may have left others."""
    named = {artifact.path: artifact for artifact in artifacts}
    try:
        with folder.below(pending) as top:
            return named.keys() == set(_files(top)) and all(_is_whole(top, artifact) for artifact in named.values())
    except (OSError, StateCorrupted):
        return False


def _files(top: Folder) -> Iterator[str]:
    for where, _, names, _ in os.fwalk(dir_fd=top.fd):
        for name in names:
            yield str(PurePosixPath(where, name))


def _is_whole(top: Folder, artifact: Artifact) -> bool:
    *folders, name = artifact.path.split("/")
    with top.below(*folders) as folder:
        fd = folder.open_file(name, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        whole = os.fstat(fd).st_size == artifact.size
        return whole and hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
