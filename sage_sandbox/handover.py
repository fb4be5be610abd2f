"""A run for a process of its own: everything asked and refused here, the rest done there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_sandbox.api import How, check_feature, prepare, prepare_resume, slug
from sage_sandbox.policy import parse_grant
from sage_sandbox.preparing.approving import approve_workflow, limits_of
from sage_sandbox.preparing.definitions import allowed, put_aside, stored_workflow, updated
from sage_sandbox.preparing.how import check_how
from sage_sandbox.preparing.journals import closing_on_error, open_journal, refuse_unfinished, require_state
from sage_sandbox.workflow.definition import AskedLimits, Budgets

if TYPE_CHECKING:
    from sage_sandbox.brokering import Needs
    from sage_sandbox.grants.review import Review


def run_request(
    template: str | os.PathLike[str],
    feature: str | None,
    how: How,
    *,
    params: Mapping[str, Any] | None = None,
    limits: Iterable[str] | AskedLimits = (),
    restart: bool = False,
) -> dict[str, Any]:
    """Settle everything that may be asked or refused; what `run_detached` needs to do the rest elsewhere, as JSON.

    It holds keys and the values of granted environment names: it is for a pipe, not for a command line.
    """
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.parameters import resolve_params, typed
    from sage_sandbox.workflow.templates import find

    check_how(how)
    path = find(os.fspath(template), how.project)
    workflow = load(path)
    feature = feature or slug(workflow.name)
    check_feature(feature)
    how, passphrase = _remembering_passphrase(how)
    journal, _ = open_journal(how, feature)
    with closing_on_error(journal):
        if not restart:
            refuse_unfinished(journal)
        given = typed(params or {})
        resolve_params(workflow, given)
        review, needs = approve_workflow(workflow, how.allow, how)
    journal.close()
    return {
        **_request(how, feature, review, needs, passphrase),
        "verb": "run",
        "template": os.path.abspath(path),  # noqa: PTH100 - links in it are the user's own words
        "digest": workflow.digest,
        "params": given,
        "limits": asdict(limits_of(limits)),
        "restart": restart,
    }


def resume_request(feature: str, how: How, *, from_phase: str | None = None, update: bool = False) -> dict[str, Any]:
    """As `run_request`, for `resume`."""
    check_how(how)
    check_feature(feature)
    require_state(how.project, feature)
    how, passphrase = _remembering_passphrase(how)
    journal, _ = open_journal(how, feature)
    with closing_on_error(journal):
        found = journal.read()
        stored = stored_workflow(found.definition)
        workflow, values = updated(found.definition, stored) if update else (stored, found.definition.params)
        put_aside(found, stored, workflow, values, from_phase)
        review, needs = approve_workflow(workflow, allowed(found.definition, how), how)
    journal.close()
    return {
        **_request(how, feature, review, needs, passphrase),
        "verb": "resume",
        "digest": workflow.digest,
        "from_phase": from_phase,
        "update": update,
    }


def run_detached(request: Mapping[str, Any], ready: Callable[[dict[str, Any]], None]) -> int:
    """Do what a request says, in this process; ``ready`` is told once the lock is held and the first state durable."""
    from sage_sandbox.observe.progress import Progress
    from sage_sandbox.signals import cancelled_by_signals

    how = How(
        project=Path(request["project"]),
        allow=tuple(parse_grant(text) for text in request["grants"]),
        parallel=request["parallel"],
        sequential=request["sequential"],
        timeout_s=request["timeout_s"],
        require=frozenset(request["require"]),
        observers=(Progress(),),
        environ={**os.environ, **request["environ"]},
        cache=request["cache"],
        budgets=Budgets.of(request["budgets"]),
    )
    feature = request["feature"]
    if request["verb"] == "run":
        limits = AskedLimits(**request["limits"])
        prepared = prepare(
            request["template"],
            feature,
            how,
            params=request["params"],
            limits=limits,
            restart=request["restart"],
            digest=request["digest"],
        )
    else:
        prepared = prepare_resume(
            feature, how, from_phase=request["from_phase"], update=request["update"], digest=request["digest"]
        )
    ready({"feature": feature, "workflowId": prepared.runner.workflow_id, "status": "running", "pid": os.getpid()})
    with cancelled_by_signals(prepared.runner.cancel):
        return int(prepared.runner.run().exit_code)


def _request(
    how: How, feature: str, review: Review, needs: Needs | None, passphrase: Mapping[str, str]
) -> dict[str, Any]:
    from sage_sandbox.policy import SECRET_NAMES
    from sage_sandbox.providers import variable_names

    names = {*SECRET_NAMES, *variable_names(), *(name for policy in review.policies.values() for name in policy.env)}
    names |= needs.values.keys() if needs is not None else set()
    given = {name: how.env[name] for name in sorted(names) if name in how.env}
    return {
        "project": str(how.project),
        "feature": feature,
        "grants": [str(grant) for grant in review.held],
        "parallel": how.parallel,
        "sequential": how.sequential,
        "timeout_s": how.timeout_s,
        "require": sorted(how.require),
        "cache": how.cache,
        "budgets": asdict(how.budgets),
        "environ": {**given, **passphrase},
    }


def _remembering_passphrase(how: How) -> tuple[How, dict[str, str]]:
    """The same, and the passphrase once one was typed, as a variable: the new process has nobody to ask."""
    typed: dict[str, str] = {}
    ask = how.ask_passphrase
    if ask is None:
        return how, typed

    def remember() -> str:
        typed["SAGE_STATE_PASSPHRASE"] = ask()
        return typed["SAGE_STATE_PASSPHRASE"]

    return replace(how, ask_passphrase=remember), typed
