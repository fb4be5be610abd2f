"""What the user allowed for good: one file in the user's configuration folder, by project and template digest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.asks import all_asks
from sage_sandbox.grants.remembered import Kind, Remembered, as_list, as_text
from sage_sandbox.grants.resolving import PATH_KINDS
from sage_sandbox.policy import Grant, parse_grant
from sage_sandbox.workflow.definition import Workflow

DIGESTS_KEPT: Final = 8
"""How many versions of one template a project keeps allowed: enough for the branches somebody switches between."""


@frozen
class Record:
    """What was allowed for one template, byte for byte, in one project; ``asks`` is all it asked for then."""

    project: str
    template: str
    digest: str
    asks: tuple[str, ...]
    grants: tuple[str, ...]


@frozen
class Change:
    """How a template's asks differ from when it was last allowed here."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


class Memory(Remembered[Record]):
    """The remembered grants of one user."""

    kind = Kind("grants", "records", "the remembered grants", "answer again")

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
        if reason := self.forgets(workflow):
            raise OSError(errno.ENOENT, reason)
        new = _record(workflow, project, tuple(str(grant) for grant in grants if not grant.forced))
        self._change(lambda records: _added(records, new))

    def _find(self, workflow: Workflow, project: Path) -> Record | None:
        if not workflow.digest:
            return None
        real = os.path.realpath(project)
        matching = (record for record in self._load() if (record.project, record.digest) == (real, workflow.digest))
        return next(matching, None)

    def _read_record(self, raw: Mapping[str, Any]) -> Record:
        project, template, digest = (as_text(raw.get(name)) for name in ("project", "template", "digest"))
        asks, grants = (tuple(as_text(text) for text in as_list(raw.get(name))) for name in ("asks", "grants"))
        for text in grants:
            _check_remembered(text)
        return Record(project, template, digest, asks, grants)


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


def _check_remembered(text: str) -> None:
    try:
        grant = parse_grant(text)
    except UsageError as error:
        raise ValueError(f"{text!r} is not a grant") from error
    relative = grant.kind in PATH_KINDS and not grant.value.startswith("/")
    if grant.forced or relative:
        raise ValueError(f"{text!r} is not a grant that is ever remembered")
