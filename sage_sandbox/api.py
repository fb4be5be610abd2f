"""From a template's name, or a run that stopped, to a run: read, approved, locked, started without waiting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Grant, parse_duration, parse_grant
from sage_sandbox.preparing.approving import approve_workflow, limits_of, make_ledger
from sage_sandbox.preparing.caches import ask_cache, is_answered
from sage_sandbox.preparing.definitions import (
    allowed,
    changes,
    define,
    known_limits,
    put_aside,
    require_same,
    stored_workflow,
    updated,
)
from sage_sandbox.preparing.how import How, check_how
from sage_sandbox.preparing.journals import closing_on_error, open_journal, refuse_unfinished, require_state
from sage_sandbox.preparing.naming import check_feature, check_place, slug
from sage_sandbox.preparing.notices import lacking, repairs, said
from sage_sandbox.runner import Runner, warm
from sage_sandbox.workflow.definition import AskedLimits, Budgets, Workflow

if TYPE_CHECKING:
    from sage_sandbox.brokering import Needs
    from sage_sandbox.document import RunResult
    from sage_sandbox.events import Observer
    from sage_sandbox.grants.review import Review
    from sage_sandbox.journal import Journal, Kept
    from sage_sandbox.spending import Ledger
    from sage_sandbox.workflow.loading import Report


__all__ = [
    "How",
    "Prepared",
    "check_feature",
    "inspect_template",
    "named_template",
    "prepare",
    "prepare_resume",
    "resume",
    "run",
    "slug",
    "template_names",
]


@frozen
class Prepared:
    """A run that is ready: its workers are starting. ``notices`` are for the user to read. `Runner.run` ends it all.

    ``kept`` says what a resume does not repeat; None where nothing ran before.
    """

    workflow: Workflow
    runner: Runner
    notices: tuple[str, ...] = ()
    kept: Kept | None = None
    journal: Journal | None = None


def run(
    template: str | os.PathLike[str],
    feature: str | None = None,
    *,
    project: str | os.PathLike[str] = ".",
    params: Mapping[str, Any] | None = None,
    allow: Iterable[str | Grant] = (),
    limits: Iterable[str] | AskedLimits = (),
    parallel: int | None = None,
    sequential: bool = False,
    timeout: float | str | None = None,
    require: Iterable[str] = (),
    observers: Iterable[Observer] = (),
    state: bool = True,
    restart: bool = False,
    cache: bool = True,
    budgets: Iterable[str] | Budgets = (),
) -> RunResult:
    """Run a template (a path, or a name in the project's ``.sage/templates``) and wait for how it ends.

    ``allow`` and ``limits`` read as on the command line: ``["read:src"]``, ``["memory=1G"]``. Nobody is asked: what is
    neither allowed here nor remembered raises NotGranted. ``timeout`` is a number of milliseconds, or ``"10m"``. What
    an operation did wrong is in the result, not raised. Every phase that ends is saved, unless ``state`` is false;
    ``restart`` puts aside what an unfinished run of the feature left. Without ``cache`` no operation is answered from
    what an earlier run kept, and nothing is kept; where there is no state there is no cache either. ``budgets`` read as
    on the command line, too: ``["tokens=50000"]``.
    """
    how = _how(project, allow, parallel, sequential, timeout, require, observers, cache, budgets)
    return prepare(template, feature, how, params=params, limits=limits, state=state, restart=restart).runner.run()


def resume(
    feature: str,
    *,
    project: str | os.PathLike[str] = ".",
    from_phase: str | None = None,
    update: bool = False,
    allow: Iterable[str | Grant] = (),
    parallel: int | None = None,
    sequential: bool = False,
    timeout: float | str | None = None,
    require: Iterable[str] = (),
    observers: Iterable[Observer] = (),
    cache: bool = True,
    budgets: Iterable[str] | Budgets = (),
) -> RunResult:
    """Go on with a run that was stopped or killed, and wait for how it ends. Raises NoSuchRun, Locked, StateCorrupted.

    ``from_phase`` runs that phase again and all that follow from it; ``update`` takes the template as it is now.
    ``budgets`` take the place of what held before.
    """
    how = _how(project, allow, parallel, sequential, timeout, require, observers, cache, budgets)
    return prepare_resume(feature, how, from_phase=from_phase, update=update).runner.run()


def prepare(
    template: str | os.PathLike[str],
    feature: str | None,
    how: How,
    *,
    params: Mapping[str, Any] | None = None,
    limits: Iterable[str] | AskedLimits = (),
    state: bool = True,
    restart: bool = False,
    digest: str = "",
) -> Prepared:
    """Get a run ready up to its first operation: as `run`, but ``how`` may name somebody to ask.

    ``digest``, if given, is what the template's must be.
    """
    check_how(how)
    if feature is not None:
        check_feature(feature)
    with _warmed(how, os.fspath(template) if state else "") as start:
        from sage_sandbox.workflow.loading import load
        from sage_sandbox.workflow.parameters import resolve_params, typed
        from sage_sandbox.workflow.templates import find

        workflow = load(find(os.fspath(template), how.project))
        require_same(workflow, digest)
        feature = feature or slug(workflow.name)
        journal, notice = open_journal(how, feature) if state else (None, "")
        with closing_on_error(journal):
            if journal is not None and not restart:
                refuse_unfinished(journal)
            values = resolve_params(workflow, typed(params or {}))
            overrides = limits_of(limits)
            review, needs = approve_workflow(workflow, how.allow, how)
            ledger = make_ledger(workflow, workflow.budgets.held_to(how.budgets), how.env)
            runner = start(workflow, feature, values, overrides, review, needs, ledger, how.timeout_s)
            definition = None
            if journal is not None:
                definition = define(workflow, values, overrides, review, how.timeout_s, how.env, how.budgets)
                journal.begin(definition, workflow)
                runner.saved_by(journal)
                notice = "; ".join(said(notice, ask_cache(how, journal, runner, workflow)))
            return Prepared(workflow, runner, said(notice, *review.notices, lacking(definition)), journal=journal)


def prepare_resume(
    feature: str, how: How, *, from_phase: str | None = None, update: bool = False, digest: str = ""
) -> Prepared:
    """Get a run ready to go on: as `resume`, but ``how`` may name somebody to ask; ``digest`` as for `prepare`."""
    check_how(how)
    check_feature(feature)
    require_state(how.project, feature)
    with _warmed(how) as start:
        from sage_sandbox.journal import weigh
        from sage_sandbox.spending import spent_before

        journal, notice = open_journal(how, feature)
        with closing_on_error(journal):
            found = journal.read()
            definition = found.definition
            stored = stored_workflow(definition)
            workflow, values = updated(definition, stored) if update else (stored, definition.params)
            require_same(workflow, digest)
            aside = put_aside(found, stored, workflow, values, from_phase)
            review, needs = approve_workflow(workflow, allowed(definition, how), how)
            overrides = AskedLimits(**known_limits(definition))
            timeout_s = definition.timeout_s if how.timeout_s is None else how.timeout_s
            kept = weigh(found, workflow, aside)
            given = Budgets.of(definition.budgets)
            raised = Budgets.of(definition.raised).replaced_by(how.budgets)
            budgets = workflow.budgets.held_to(given).replaced_by(raised)
            ledger = make_ledger(workflow, budgets, how.env, spent_before(found))
            runner = start(workflow, feature, values, overrides, review, needs, ledger, timeout_s, kept)
            changed = [] if update else changes(definition)
            notices = said(notice, *repairs(found), *changed, *review.notices)
            if found.state.status == "completed" and workflow.digest == definition.digest and not kept.again:
                journal.close()
                runner.workflow_id = found.state.run
                return Prepared(workflow, runner, notices, kept)
            fresh = None
            if update or how.budgets != Budgets():
                fresh = define(workflow, values, overrides, review, timeout_s, how.env, given, raised)
            journal.go_on(found, workflow, aside, fresh)
            runner.saved_by(journal)
            uncached = ask_cache(how, journal, runner, workflow)
            return Prepared(workflow, runner, said(*notices, lacking(fresh), uncached), kept, journal)


# -- for those who may name things and point at nothing ------------------------------------------------------------


def named_template(name: str, project: Path) -> Path:
    """The file of a template by its name; UsageError, with the names that there are, for a path or if there is none."""
    from sage_sandbox.workflow.templates import find_named

    return find_named(name, project)


def template_names(project: Path) -> list[str]:
    """The names that `named_template` knows."""
    from sage_sandbox.workflow.templates import names

    return names(project)


def inspect_template(template: str | Mapping[str, Any], project: Path) -> Report:
    """Everything that is wrong with a template by its name, or with a definition as plain data; UsageError."""
    from sage_sandbox.workflow.loading import inspect, inspect_text

    if isinstance(template, str):
        return inspect(named_template(template, project))
    return inspect_text(json.dumps(template), "json", "definition")


# -- the steps of both ---------------------------------------------------------------------------------------------


Start = Callable[..., Runner]


@contextmanager
def _warmed(how: How, template: str = "") -> Iterator[Start]:
    """Start workers first: they come up while pydantic is loaded and the template is read.

    Where the last run of the ``template`` left an answer for everything, most likely none is needed: then the first
    operation without one starts them.
    """
    answered = how.cache and template != "" and is_answered(how, template)
    dispatcher = warm(str(how.project), parallel=how.slots, slots=0 if answered else 1, environ=how.env)

    def start(
        workflow: Workflow,
        feature: str,
        values: Mapping[str, Any],
        overrides: AskedLimits,
        review: Review,
        needs: Needs | None,
        ledger: Ledger,
        timeout_s: float | None,
        kept: Kept | None = None,
    ) -> Runner:
        from sage_sandbox.grants.limits import machine_ceilings, workflow_limits

        check_place(how.project, feature)
        return Runner(
            workflow,
            feature=feature,
            params=values,
            policies=review.policies,
            limits=workflow_limits(workflow, overrides, machine_ceilings()),
            project=str(how.project),
            parallel=how.slots,
            sequential=how.sequential,
            timeout_s=timeout_s,
            observers=how.observers,
            artifacts=True,
            require_cgroup="memory=cgroup" in how.require,
            dispatcher=dispatcher,
            earlier=kept.earlier if kept is not None else None,
            needs=needs,
            ledger=ledger,
            environ=how.env,
        )

    try:
        yield start
    except BaseException:
        dispatcher.close()
        raise


def _how(
    project: str | os.PathLike[str],
    allow: Iterable[str | Grant],
    parallel: int | None,
    sequential: bool,
    timeout: float | str | None,
    require: Iterable[str],
    observers: Iterable[Observer],
    cache: bool,
    budgets: Iterable[str] | Budgets,
) -> How:
    from sage_sandbox.grants.budgets import parse_budget_options

    return How(
        project=Path(os.path.realpath(project)),
        allow=tuple(parse_grant(grant) if isinstance(grant, str) else grant for grant in allow),
        parallel=parallel,
        sequential=sequential,
        timeout_s=None if timeout is None else _seconds(timeout),
        require=frozenset(require),
        observers=tuple(observers),
        cache=cache,
        budgets=budgets if isinstance(budgets, Budgets) else parse_budget_options(budgets),
    )


def _seconds(timeout: float | str) -> float:
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"timeout: {error}") from error
