"""What is to be said before a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sage_sandbox.escaping import clip

if TYPE_CHECKING:
    from sage_sandbox.store.reading import Found
    from sage_sandbox.store.records import Definition

ACTIVE_WIDTH: Final = 1000


def said(*notices: str) -> tuple[str, ...]:
    """Those that say something."""
    return tuple(notice for notice in notices if notice)


def active_runs(project: Path) -> str:
    """What runs in a project, for people."""
    from sage_sandbox.store.active import listed
    from sage_sandbox.store.layout import state_folder

    with state_folder(project) as folder:
        entries = listed(folder)
    known = (f"{name} ({entry.get('template')}, since {entry.get('startedAt')})" for name, entry in entries.items())
    return f"running here: {clip(', '.join(known), ACTIVE_WIDTH)}" if entries else ""


def lacking(definition: Definition | None) -> str:
    """What to say of a definition that nothing can go by again."""
    if definition is None or not definition.lacks_secrets:
        return ""
    return "a secret stands in the template or in a parameter: it is not saved, so this run cannot be resumed"


def repairs(found: Found) -> Iterator[str]:
    """What was damaged, and where the rest came from."""
    if found.source != "state":
        where = {"backup": "backup", "checkpoints": "the checkpoints"}[found.source]
        done, total = found.state.progress["completed"], found.state.progress["total"]
        yield f"Workflow state corrupted, restoring from {where} · ✓ restored to phase {done} of {total}"
    for damage in found.damages:
        again = f", {damage.phase} runs again" if damage.phase else ""
        yield f"{damage.message}: it is kept in .sage/state/aside{again}"
