"""What a workflow asks for, held against what the user allows; nothing is asked or decided here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import field, replace
from pathlib import Path

from sage_sandbox.errors import NotGranted, UsageError
from sage_sandbox.escaping import escape
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.asks import all_asks, as_option, as_typed, asks_of, policy_of
from sage_sandbox.grants.coverage import covering
from sage_sandbox.grants.notes import describe
from sage_sandbox.grants.places import Places, find_places
from sage_sandbox.grants.resolving import PATH_KINDS, Allowed, Demand, demands, resolve, resolve_allowed, resolve_path
from sage_sandbox.policy import Grant, Policy
from sage_sandbox.workflow.definition import Workflow


@frozen
class Row:
    """One ask of one operation. ``ask`` is as written, ``path`` the real path it means (empty where it is none)."""

    phase: str
    operation: str
    ask: Grant
    granted: bool
    note: str = ""
    path: str = ""


@frozen
class Review:
    """Everything asked for, row by row.

    ``missing`` are the grants that would complete it, as the user would type them; ``wanted`` those of them that a
    plain yes can give, resolved. ``policies`` hold what is asked *and* granted, by (phase, operation), in absolute
    paths. ``problems`` are the asks that no plain yes can allow; ``notices`` are for the user to read. ``held`` are the
    grants that all this was held against.
    """

    rows: tuple[Row, ...] = ()
    missing: tuple[Grant, ...] = ()
    wanted: tuple[Grant, ...] = ()
    policies: Mapping[tuple[str, str], Policy] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    held: tuple[Grant, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything asked for is granted."""
        return not self.missing and not self.problems


@frozen
class Verdict:
    """What one ask comes to; ``needs`` are the missing grants as typed, and what each resolves to (None: a name)."""

    resolved: Grant | None = None
    note: str = ""
    problem: str = ""
    needs: tuple[tuple[Grant, Grant | None], ...] = ()

    @property
    def granted(self) -> bool:
        """Whether the ask is allowed in full."""
        return not self.problem and not self.needs

    @property
    def path(self) -> str:
        """The real path that is asked for, if it is one."""
        return self.resolved.value if self.resolved is not None and self.resolved.kind in PATH_KINDS else ""


def review(workflow: Workflow, grants: Sequence[Grant], project: Path, *, places: Places | None = None) -> Review:
    """Hold what every operation asks for against the grants; UsageError if a grant itself cannot be meant."""
    places = places or find_places(project)
    allowed = resolve_allowed(grants, places)
    held = frozenset(replace(grant, forced=False) for grant in allowed.grants)
    verdicts = {ask: _judge(ask, allowed, places, held) for ask in all_asks(workflow)}
    needs = {typed: resolved for verdict in verdicts.values() for typed, resolved in verdict.needs}
    missing = _minimal(needs)
    return Review(
        rows=tuple(_rows(workflow, verdicts)),
        missing=missing,
        wanted=tuple(resolved for typed in missing if not typed.forced and (resolved := needs[typed]) is not None),
        policies=_policies(workflow, verdicts, allowed),
        problems=tuple(_problems(workflow, verdicts)),
    )


def require(review: Review) -> None:
    """NotGranted, with all that is missing as ready ``--allow``, unless the review is complete."""
    if not review.complete:
        raise refusal(review)


def refusal(review: Review) -> NotGranted:
    """The error that an incomplete review is."""
    options = tuple(as_option(grant) for grant in review.missing)
    count = len({row.ask for row in review.rows if not row.granted})
    message = f"{count} thing{'s are' if count > 1 else ' is'} asked for and not granted"
    message += "".join(f"; {problem}" for problem in review.problems)
    return NotGranted(message, f"if you trust the template, add {' '.join(options)}" if options else "", options)


def grant_policy(grants: Sequence[Grant], project: Path, *, places: Places | None = None) -> Policy:
    """The policy that is exactly these grants, where no template asks (``exec``, the library)."""
    if tool := next((grant for grant in grants if grant.kind == "tool"), None):
        raise UsageError(f"--allow {tool}: tools are called by the operations of a workflow only")
    if model := next((grant for grant in grants if grant.kind == "model"), None):
        raise UsageError(f"--allow {model}: models are asked by the operations of a workflow only")
    allowed = resolve_allowed(grants, places or find_places(project))
    return policy_of(allowed.grants, allowed.unprotected)


def _judge(ask: Grant, allowed: Allowed, places: Places, held: AbstractSet[Grant]) -> Verdict:
    try:
        resolved = resolve(ask, places)
    except UsageError as error:
        return Verdict(problem=f"{error} ({error.hint})" if error.hint else str(error))
    covered = any(covering(resolved, held))
    typed = as_typed(ask)
    unmet = _unmet(demands(resolved, typed.value, places), covered, allowed)
    needs = [(demand.grant, _lifted(demand.grant, resolved, places)) for demand in unmet]
    if not covered and not any(grant.kind == "read" for grant, _ in needs):
        needs.insert(0, (typed, resolved))
    return Verdict(resolved, describe(ask, resolved), unmet[0].why if unmet else "", tuple(needs))


def _unmet(demanded: Sequence[Demand], covered: bool, allowed: Allowed) -> list[Demand]:
    # What covers a private path was itself typed with "!", or it would have been refused.
    return [
        demand
        for demand in demanded
        if not (covered if demand.grant.kind == "read" else allowed.spares(demand.grant.value))
    ]


def _lifted(demanded: Grant, resolved: Grant, places: Places) -> Grant | None:
    """What a ``!`` grant allows besides lifting a name, once it is typed."""
    if demanded.kind == "read":
        return resolved
    try:
        return Grant("write", resolve_path(demanded.value, places.project))
    except UsageError:
        return None


def _minimal(needs: Mapping[Grant, Grant | None]) -> tuple[Grant, ...]:
    """Without those that another one covers; of two that mean the same, the one with ``!``, else the first."""
    holders: dict[Grant, Grant] = {}
    for typed, resolved in needs.items():
        if resolved is not None and (typed.forced or resolved not in holders):
            holders[resolved] = typed
    return tuple(typed for typed, resolved in needs.items() if _is_needed(typed, resolved, holders))


def _is_needed(typed: Grant, resolved: Grant | None, holders: Mapping[Grant, Grant]) -> bool:
    if resolved is None or (typed.kind == "write" and typed.forced):
        return True
    return all(holders[grant] == typed for grant in covering(resolved, holders.keys()))


def _rows(workflow: Workflow, verdicts: Mapping[Grant, Verdict]) -> Iterator[Row]:
    for phase, operation, asks in _walk(workflow):
        for ask in asks:
            verdict = verdicts[ask]
            note = "; ".join(text for text in (verdict.problem, verdict.note) if text)
            yield Row(phase, operation, ask, verdict.granted, note, verdict.path)


def _policies(workflow: Workflow, verdicts: Mapping[Grant, Verdict], allowed: Allowed) -> dict[tuple[str, str], Policy]:
    policies = {}
    for phase, operation, asks in _walk(workflow):
        granted = [verdicts[ask].resolved for ask in asks if verdicts[ask].granted]
        policies[phase, operation] = policy_of((grant for grant in granted if grant), allowed.unprotected)
    return policies


def _problems(workflow: Workflow, verdicts: Mapping[Grant, Verdict]) -> Iterator[str]:
    """Each problem once, with the first operation that has it."""
    told = set()
    for phase, operation, asks in _walk(workflow):
        for ask in asks:
            if (problem := verdicts[ask].problem) and ask not in told:
                told.add(ask)
                yield escape(f"{phase}/{operation} asks for {ask}: {problem}")


def _walk(workflow: Workflow) -> Iterator[tuple[str, str, tuple[Grant, ...]]]:
    for phase in workflow.phases:
        for operation in phase.operations:
            yield phase.id, operation.id, asks_of(operation.policy)
