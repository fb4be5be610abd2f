"""Run a stranger's workflow, every operation in a kernel sandbox of its own.

    import sage_sandbox as sage

    result = sage.run("report.yaml", allow=["read:."])

Names are looked up when first used (PEP 562): importing this package, or any module of it, loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_sandbox.api import resume, run
    from sage_sandbox.document import RunResult, document
    from sage_sandbox.errors import (
        DefinitionError,
        Interrupted,
        Locked,
        NoSuchRun,
        NotGranted,
        Problem,
        ReferenceMissing,
        SageError,
        SandboxUnavailable,
        StateCorrupted,
        StateTooNew,
        StateUnwritable,
        UsageError,
        WorkerLost,
        WrongKey,
    )
    from sage_sandbox.outcome import Outcome
    from sage_sandbox.policy import Grant, Limits, Policy
    from sage_sandbox.runner import Runner
    from sage_sandbox.single import Sandbox
    from sage_sandbox.workflow.definition import Workflow
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.planning import Plan, plan

    __version__: str

_HOMES = {
    "DefinitionError": "errors",
    "Grant": "policy",
    "Interrupted": "errors",
    "Limits": "policy",
    "Locked": "errors",
    "NoSuchRun": "errors",
    "NotGranted": "errors",
    "Outcome": "outcome",
    "Plan": "workflow.planning",
    "Policy": "policy",
    "Problem": "errors",
    "ReferenceMissing": "errors",
    "RunResult": "document",
    "Runner": "runner",
    "SageError": "errors",
    "Sandbox": "single",
    "SandboxUnavailable": "errors",
    "StateCorrupted": "errors",
    "StateTooNew": "errors",
    "StateUnwritable": "errors",
    "UsageError": "errors",
    "WorkerLost": "errors",
    "Workflow": "workflow.definition",
    "WrongKey": "errors",
    "document": "document",
    "load": "workflow.loading",
    "plan": "workflow.planning",
    "resume": "api",
    "run": "api",
}

__all__ = [
    "DefinitionError",
    "Grant",
    "Interrupted",
    "Limits",
    "Locked",
    "NoSuchRun",
    "NotGranted",
    "Outcome",
    "Plan",
    "Policy",
    "Problem",
    "ReferenceMissing",
    "RunResult",
    "Runner",
    "SageError",
    "Sandbox",
    "SandboxUnavailable",
    "StateCorrupted",
    "StateTooNew",
    "StateUnwritable",
    "UsageError",
    "WorkerLost",
    "Workflow",
    "WrongKey",
    "__version__",
    "document",
    "load",
    "plan",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import the home of a public name, once."""
    if name == "__version__":
        value: Any = _installed_version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sage-sandbox")
    except PackageNotFoundError:
        return "0+not.installed"
