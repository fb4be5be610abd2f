"""What a run goes by: as it is saved when the run begins, and as a resume finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sage_sandbox.errors import NoSuchPhase, UsageError
from sage_sandbox.policy import Grant, parse_grant
from sage_sandbox.workflow.definition import AskedLimits, Budgets, Template, Workflow

if TYPE_CHECKING:
    from sage_sandbox.grants.review import Review
    from sage_sandbox.preparing.how import How
    from sage_sandbox.store.reading import Found
    from sage_sandbox.store.records import Definition


def define(
    workflow: Workflow,
    values: Mapping[str, Any],
    overrides: AskedLimits,
    review: Review,
    timeout_s: float | None,
    environ: Mapping[str, str],
    budgets: Budgets,
    raised: Budgets = Budgets(),
) -> Definition:
    """What a run goes by, fit to be saved: without the secrets that are known."""
    from sage_sandbox.journal import utc_now, without_secrets
    from sage_sandbox.results.scrub import known_values
    from sage_sandbox.store.records import Definition

    assert workflow.template is not None
    definition = Definition(
        number=1,  # where there is one already, the store gives it the next
        name=workflow.name,
        kind=workflow.template.kind,
        source=os.path.abspath(workflow.source),  # noqa: PTH100 - links in it are the user's own words
        digest=workflow.digest,
        text=workflow.template.text,
        phase_ids=tuple(phase.id for phase in workflow.phases),
        made_at=utc_now(),
        files=workflow.template.files,
        params=values,
        grants=tuple(str(grant) for grant in review.held),
        limits=asdict(overrides),
        timeout_s=timeout_s,
        budgets=_set(budgets),
        raised=_set(raised),
    )
    return without_secrets(definition, known_values(environ))


def _set(budgets: Budgets) -> dict[str, float]:
    return {name: value for name, value in asdict(budgets).items() if value is not None}


def _template(definition: Definition) -> Template:
    kinds = {"yaml": "yaml", "json": "json", "toml": "toml"}
    return Template(kinds[definition.kind], definition.text, definition.files)  # type: ignore[arg-type]


def stored_workflow(definition: Definition) -> Workflow:
    """The workflow as it was saved; UsageError where a secret had to be left out."""
    from sage_sandbox.workflow.loading import load_stored

    if definition.lacks_secrets:
        message = "a secret stood in the template or in a parameter: that is not saved, so nothing can go on from it"
        raise UsageError(message, "start anew with --restart; a secret belongs in an env: grant")
    return load_stored(_template(definition), definition.source)


def changes(definition: Definition) -> tuple[str, ...]:
    """What to say of files of the template that are not any more what was read then."""
    from sage_sandbox.workflow.loading import differs_on_disk

    changed = differs_on_disk(_template(definition), definition.source)
    if not changed:
        return ()
    return (f"{', '.join(changed)} changed since; going on with what was stored (--update takes the new one)",)


def known_limits(definition: Definition) -> dict[str, Any]:
    """The limits the user set when the run began, as far as this version knows them."""
    names = AskedLimits.__dataclass_fields__
    return {name: value for name, value in definition.limits.items() if name in names}


def allowed(definition: Definition, how: How) -> tuple[Grant, ...]:
    """What was granted when the run began, and what is granted now."""
    return tuple(dict.fromkeys((*(parse_grant(text) for text in definition.grants), *how.allow)))


def updated(definition: Definition, stored: Workflow) -> tuple[Workflow, Mapping[str, Any]]:
    """The template as it is on disk now, and its parameters: as they were given, by default as it says now."""
    from sage_sandbox.workflow.changes import parameters_left
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.parameters import resolve_params, typed

    workflow = load(definition.source)
    return workflow, resolve_params(workflow, typed(parameters_left(stored, workflow, definition.params)))


def put_aside(
    found: Found, stored: Workflow, workflow: Workflow, values: Mapping[str, Any], from_phase: str | None
) -> dict[str, str]:
    """Why phases no longer count whose checkpoints may be there: the user said so, or an update changed them."""
    from sage_sandbox.workflow.changes import changed_phases
    from sage_sandbox.workflow.planning import descendants

    ids = [phase.id for phase in workflow.phases]
    if from_phase is not None and from_phase not in ids:
        raise NoSuchPhase(
            f"there is no phase {from_phase!r} in {workflow.name}", f"its phases are {', '.join(ids[:20])}"
        )
    before = found.definition.params
    starts = changed_phases(stored, workflow, {name for name in values if values[name] != before.get(name)})
    if from_phase is not None:
        starts[from_phase] = "as you asked"
    after = dict.fromkeys(descendants(workflow, starts), "it follows from what runs again")
    gone = dict.fromkeys(found.checkpoints.keys() - set(ids), "it is not in the template any more")
    return {**gone, **after, **starts}


def require_same(workflow: Workflow, digest: str) -> None:
    """UsageError if a ``digest`` is given and the workflow's is another."""
    if digest and workflow.digest != digest:
        raise UsageError("the template changed while the run was being started", "start it again")
