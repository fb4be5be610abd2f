"""The broker as a process of its own: started by `brokering` with a listening socket and nothing else of value."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from sage_sandbox.audit.log import AuditLog, open_audit
from sage_sandbox.broker.calling import NoRecord, Record
from sage_sandbox.broker.runs import Registration
from sage_sandbox.broker.server import Broker
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import Locked, SageError

LOCK_SUFFIX: Final = ".lock"


def main(listener_fd: int | str, path: str) -> int:
    """Serve the socket that was handed over; ``path`` is where it lies. Returns when its last user is gone."""
    _settle_in()
    from sage_sandbox.broker.sessions import connected

    listener = socket.socket(fileno=int(listener_fd))
    end = End(Path(path), listener)
    asyncio.run(Broker(listener, connect=connected, make_record=open_record, may_end=end).serve())
    return 0


def _settle_in() -> None:
    """Keep to ourselves: nobody may look into this process (prctl(2), PR_SET_DUMPABLE), and nothing is printed."""
    from sage_sandbox.sandbox.inside.syscalls import set_dumpable

    set_dumpable(False)
    logging.disable()  # the SDK's words about a server may hold what it said


class End:
    """Takes the socket away for good, unless somebody holds the lock under which others come."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self._path = path
        found = os.lstat(path)
        self._identity = (found.st_dev, found.st_ino)
        self._listener = listener

    def __call__(self) -> bool:
        """Whether it is done."""
        try:
            with Folder.open(self._path.parent) as folder, acquire(folder, self._path.name + LOCK_SUFFIX, wait_s=0):
                self._remove(folder)
                self._listener.close()
        except Locked:
            return False
        except (OSError, SageError):
            pass  # the folder is gone, and so is the way to us
        return True

    def _remove(self, folder: Folder) -> None:
        found = os.stat(self._path.name, dir_fd=folder.fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == self._identity:
            folder.remove(self._path.name)


async def open_record(registration: Registration) -> Record:
    """The audit log of a run; nothing is written where its coordinator keeps none. StateUnwritable."""
    if not registration.audit_key:
        return NoRecord()
    writer = ThreadPoolExecutor(1, thread_name_prefix="sage-audit")
    try:
        log = await asyncio.get_running_loop().run_in_executor(writer, _open_log, registration)
    except BaseException:
        writer.shutdown(wait=False)
        raise
    return _Record(log, registration, writer)


def _open_log(registration: Registration) -> AuditLog:
    project = Path(registration.project)
    place = project_place(project)
    with place.folder:
        return open_audit(project, place, bytes.fromhex(registration.audit_key))[0]


class _Record:
    """One run's hold on the audit log, in a thread of its own: a write waits for the disk, the loop must not."""

    def __init__(self, log: AuditLog, registration: Registration, writer: ThreadPoolExecutor) -> None:
        self._log = log
        self._run, self._feature = registration.run, registration.feature
        self._writer = writer

    async def write(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Write an entry; StateUnwritable if that cannot be."""
        await self._do(lambda: self._log.write(kind, text, run=self._run, feature=self._feature, data=data))

    def reduce(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Write an entry, soon."""
        self._writer.submit(lambda: self._log.reduce(kind, text, run=self._run, feature=self._feature, data=data))

    async def close(self) -> None:
        """Write what waits, and let go of the log."""
        await self._do(self._log.close)
        self._writer.shutdown(wait=False)

    async def _do(self, act: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, act)
