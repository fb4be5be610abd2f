"""What a workflow may touch, ask and spend, each as its user said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sage_sandbox.errors import NotGranted, UsageError
from sage_sandbox.policy import Grant
from sage_sandbox.workflow.definition import AskedLimits, Budgets, Workflow

if TYPE_CHECKING:
    from sage_sandbox.brokering import Needs
    from sage_sandbox.grants.review import Review
    from sage_sandbox.preparing.how import How
    from sage_sandbox.providers import Provider
    from sage_sandbox.spending import Ledger, Spent


def approve_workflow(workflow: Workflow, allow: Sequence[Grant], how: How) -> tuple[Review, Needs | None]:
    """What every operation may touch, the tool servers it takes, each approved, and the providers of its models.

    What was shown is what is used.
    """
    from sage_sandbox.grants.approval import approve
    from sage_sandbox.grants.memory import Memory

    review = approve(workflow, allow, how.project, memory=Memory.of_user(how.env), ask=how.ask)
    if how.within is not None:
        _require_within(workflow, how.within, how.project)
    grants = {"/".join(key): policy.tool for key, policy in review.policies.items() if policy.tool}
    models = {"/".join(key): policy.model for key, policy in review.policies.items() if policy.model}
    if not (grants or models):
        return review, None
    needs, notices = _needs(grants, how)
    if models:
        needs = replace(needs, models=models, providers=_providers(workflow, how.env))
    return replace(review, notices=(*review.notices, *notices)), needs


def _require_within(workflow: Workflow, within: Sequence[Grant], project: Path) -> None:
    """NotGranted, with nothing missing that the user could add, if the workflow needs more than this."""
    from sage_sandbox.grants.review import review

    seen = review(workflow, within, project)
    if not seen.complete:
        needed = ", ".join(str(grant) for grant in seen.missing) or "; ".join(seen.problems)
        raise NotGranted(f"the workflow needs more than this call allows: {needed}", "name it there, or set no bound")


def _needs(grants: Mapping[str, tuple[str, ...]], how: How) -> tuple[Needs, tuple[str, ...]]:
    from sage_sandbox.brokering import needs_of, shared_servers
    from sage_sandbox.grants.servers import Approvals, approve_servers
    from sage_sandbox.toolservers.reading import read_catalog

    catalog = read_catalog(how.project)
    names = dict.fromkeys(pattern.partition("/")[0] for patterns in grants.values() for pattern in patterns)
    servers = [catalog.find(name) for name in names]
    notices = approve_servers(servers, how.project, approvals=Approvals.of_user(how.env), ask=how.ask_server)
    for server in servers:
        if lacking := server.lacking(how.env):
            raise UsageError(f"the tool server {server.name} needs {', '.join(lacking)}", "set it in the environment")
    return needs_of(servers, grants, how.env, shared_servers(how.env)), notices


def _providers(workflow: Workflow, environ: Mapping[str, str]) -> tuple[Provider, ...]:
    """Who answers for the models that a workflow asks; UsageError where one is not known, or cannot be spoken to."""
    from importlib.util import find_spec

    from sage_sandbox.providers import Models

    models = Models(environ)
    asked = (operation.model for phase in workflow.phases for operation in phase.operations if operation.model)
    providers = tuple(map(models.provider, dict.fromkeys(model.partition("/")[0] for model in asked)))
    for provider in providers:
        if find_spec(provider.api) is None:
            message = f"to ask {provider.name}, the package {provider.api} is needed, and it is not installed"
            raise UsageError(message, "pip install 'sage-sandbox[llm]'")
    return providers


def make_ledger(
    workflow: Workflow, budgets: Budgets, environ: Mapping[str, str], before: Spent | None = None
) -> Ledger:
    """What holds a run to its budgets; UsageError if a model is asked whose price a budget of cost needs."""
    from sage_sandbox.providers import Models
    from sage_sandbox.spending import Ledger, Spent

    before = before or Spent()
    asked = [operation.model for phase in workflow.phases for operation in phase.operations if operation.model]
    asked += [usage.asked for usage in before.usage]
    if not asked:
        return Ledger(budgets, before=before)
    prices = Models(environ).prices(dict.fromkeys(asked), required=budgets.cost is not None)
    return Ledger(budgets, prices, before)


def limits_of(limits: Iterable[str] | AskedLimits) -> AskedLimits:
    """The limits that the user set, from how they are typed if that is what they are. UsageError."""
    from sage_sandbox.grants.limits import parse_limit_options

    return limits if isinstance(limits, AskedLimits) else parse_limit_options(limits)
