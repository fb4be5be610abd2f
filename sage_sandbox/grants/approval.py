"""From a workflow and what the user typed to what every operation may touch: recall, ask, remember, or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sage_sandbox.errors import UsageError
from sage_sandbox.grants.asking import Asker, Question
from sage_sandbox.grants.memory import Memory
from sage_sandbox.grants.places import Places, find_places
from sage_sandbox.grants.resolving import resolve_allowed
from sage_sandbox.grants.review import Review, Row, refusal, require, review
from sage_sandbox.policy import Grant
from sage_sandbox.workflow.definition import Workflow

__all__ = ["Review", "Row", "approve", "recalled", "refusal", "require", "review"]


def approve(
    workflow: Workflow,
    grants: Sequence[Grant],
    project: Path,
    *,
    memory: Memory,
    ask: Asker | None = None,
    places: Places | None = None,
) -> Review:
    """A complete review, or NotGranted with the list of what is missing.

    Given and remembered grants come first; what is then missing is put to ``ask``, unless a plain yes cannot allow it.
    """
    places = places or find_places(project)
    held = (*grants, *recalled(workflow, project, memory=memory, places=places, grants=grants))
    seen = review(workflow, held, project, places=places)
    if seen.complete:
        return replace(seen, held=held)
    if ask is None or seen.problems:
        raise refusal(seen)
    change, forgetful = memory.what_changed(workflow, project), memory.forgets(workflow)
    answer = ask(Question(workflow.name, workflow.source, seen, change, forgetful))
    if answer == "no":
        raise refusal(seen)
    # What was shown is what is granted, and not what the names lead to by now.
    held = (*held, *_still_meant(seen.wanted, grants, places))
    allowed = replace(review(workflow, held, project, places=places), held=held)
    require(allowed)
    if answer == "remember":
        return replace(allowed, notices=_remember(workflow, seen.wanted, project, memory))
    return allowed


def recalled(
    workflow: Workflow,
    project: Path,
    *,
    memory: Memory,
    places: Places | None = None,
    grants: Sequence[Grant] = (),
) -> tuple[Grant, ...]:
    """What was remembered and still means what it meant: a path that has become a link, or is gone, is asked again.

    ``grants`` are those that were typed for this run: some of what is remembered holds only beside a ``write!``.
    """
    return _still_meant(memory.recall(workflow, project), grants, places or find_places(project))


def _still_meant(resolved: Sequence[Grant], typed: Sequence[Grant], places: Places) -> tuple[Grant, ...]:
    lifts = [grant for grant in typed if grant.forced]
    return tuple(grant for grant in resolved if _is_still_meant(grant, lifts, places))


def _is_still_meant(grant: Grant, lifts: Sequence[Grant], places: Places) -> bool:
    try:
        return grant in resolve_allowed((*lifts, grant), places).grants
    except UsageError:
        return False


def _remember(workflow: Workflow, grants: Sequence[Grant], project: Path, memory: Memory) -> tuple[str, ...]:
    try:
        memory.remember(workflow, project, grants)
    except OSError as error:
        reason = error.strerror or str(error)
        return (f"the answer could not be remembered: {reason}",)
    return ()
