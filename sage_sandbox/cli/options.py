"""Options that several verbs share, so that every verb takes the same words for the same thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from sage_sandbox.policy import Grant
    from sage_sandbox.workflow.definition import AskedLimits, Budgets

F = TypeVar("F", bound=Callable[..., Any])

REQUIREMENTS: Final = ("memory=cgroup",)


def _grants(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[Grant, ...]:
    from sage_sandbox.policy import parse_grant

    return tuple(parse_grant(text) for text in texts)


def _limits(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> AskedLimits:
    from sage_sandbox.grants.limits import parse_limit_options

    return parse_limit_options(texts)


def _budgets(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> Budgets:
    from sage_sandbox.grants.budgets import parse_budget_options

    return parse_budget_options(texts)


def _duration(_: click.Context, option: click.Parameter, text: str | None) -> float | None:
    from sage_sandbox.errors import UsageError
    from sage_sandbox.policy import parse_duration

    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option.opts[0]}: {error}") from error


def _params(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    from sage_sandbox.errors import UsageError

    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--param {text!r} is not NAME=VALUE")
        if name in given:
            raise UsageError(f"--param {name} is given twice")
        given[name] = value
    return given


def allow() -> Callable[[F], F]:
    """``--allow KIND:VALUE``, as grants."""
    return click.option(
        "--allow",
        "grants",
        multiple=True,
        metavar="KIND:VALUE",
        callback=_grants,
        help="Allow something: read:PATH, write:PATH, write-through:PATH, net:HOST:PORT, tool:SERVER/TOOL, "
        "model:PROVIDER/MODEL, env:NAME or loopback. May be repeated.",
    )


def limit() -> Callable[[F], F]:
    """``--limit NAME=VALUE``, as AskedLimits."""
    return click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_limits,
        help="Set a limit: memory=256M, cpu=60s, pids=64 or disk=64M. May be repeated.",
    )


def budget() -> Callable[[F], F]:
    """``--budget NAME=VALUE``, as Budgets."""
    return click.option(
        "--budget",
        "budgets",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_budgets,
        help="Pause once this much is spent: tokens=50000, cost=1.50 (in the currency of your prices) or time=10m. "
        "Before a first run the smaller holds, this or the template's; on resuming, this. May be repeated.",
    )


def param() -> Callable[[F], F]:
    """``--param NAME=VALUE``, as text by name."""
    return click.option(
        "--param",
        "params",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_params,
        help="Set a parameter of the workflow. May be repeated.",
    )


def timeout(what: str) -> Callable[[F], F]:
    """``--timeout D``, in seconds."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="DURATION",
        callback=_duration,
        help=f"End {what} after this long: 90s, 10m, or a number of milliseconds.",
    )


def require() -> Callable[[F], F]:
    """``--require memory=cgroup``, as whether it was given."""
    return click.option(
        "--require",
        "requirements",
        multiple=True,
        type=click.Choice(REQUIREMENTS),
        help="Refuse to run where this cannot be had.",
    )


def as_json() -> Callable[[F], F]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
