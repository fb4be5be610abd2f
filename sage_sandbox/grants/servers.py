"""Which tool servers the user approved: a file in the user's configuration folder, by project, name and digest.

A definition is the project's word only. Nothing is started, contacted or expanded for it before its user has seen it
and said yes; what they said yes to is remembered by its digest, so a definition that changes is asked about again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sage_sandbox.errors import NotGranted
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.asking_servers import ServerAsker, ServerQuestion
from sage_sandbox.grants.asks import quote
from sage_sandbox.grants.remembered import Kind, Remembered, as_text
from sage_sandbox.toolservers.definition import Server

DIGESTS_KEPT: Final = 8
"""How many versions of one definition a project keeps approved: enough for the branches somebody switches between."""


@frozen
class Record:
    """One definition that was approved in one project."""

    project: str
    name: str
    digest: str


class Approvals(Remembered[Record]):
    """The approved definitions of one user."""

    kind = Kind("servers", "servers", "the approved servers", "approve them again")

    def holds(self, server: Server, project: Path) -> bool:
        """Whether exactly this definition was approved in exactly this project."""
        return Record(os.path.realpath(project), server.name, server.digest) in self._load()

    def knew(self, server: Server, project: Path) -> bool:
        """Whether another definition of this name was approved here."""
        real = os.path.realpath(project)
        return any((known.project, known.name) == (real, server.name) for known in self._load())

    def add(self, servers: Iterable[Server], project: Path) -> None:
        """Remember definitions as approved; OSError or NotGranted if that cannot be."""
        real = os.path.realpath(project)
        new = [Record(real, server.name, server.digest) for server in servers]
        self._change(lambda records: _added(records, new))

    def _read_record(self, raw: Mapping[str, Any]) -> Record:
        project, name, digest = (as_text(raw.get(field)) for field in ("project", "name", "digest"))
        return Record(project, name, digest)


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
