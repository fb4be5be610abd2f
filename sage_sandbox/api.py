"""From a template's name to a run: read, approved, planned and started, with as little waiting as can be had."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.errors import UsageError
from sage_sandbox.policy import Grant, parse_duration, parse_grant
from sage_sandbox.runner import FEATURE, Runner, parallel_limit, warm
from sage_sandbox.workflow.definition import AskedLimits, Workflow

if TYPE_CHECKING:
    from sage_sandbox.document import RunResult
    from sage_sandbox.events import Observer
    from sage_sandbox.grants.asking import Asker

FEATURE_MAX: Final = 64
REQUIREMENTS: Final = ("memory=cgroup",)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready: its workers are starting. ``notices`` are for the user to read. `Runner.run` ends it all."""

    workflow: Workflow
    runner: Runner
    notices: tuple[str, ...] = ()


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
) -> RunResult:
    """Run a template (a path, or a name in the project's ``.sage/templates``) and wait for how it ends.

    ``allow`` and ``limits`` read as on the command line: ``["read:src"]``, ``["memory=1G"]``. Nobody is asked: what is
    neither allowed here nor remembered raises NotGranted. ``timeout`` is a number of milliseconds, or ``"10m"``. What
    an operation did wrong is in the result, not raised.
    """
    return prepare(
        template,
        feature,
        project=project,
        params=params,
        allow=allow,
        limits=limits,
        parallel=parallel,
        sequential=sequential,
        timeout_s=None if timeout is None else _seconds(timeout),
        require=require,
        observers=observers,
    ).runner.run()


def prepare(
    template: str | os.PathLike[str],
    feature: str | None = None,
    *,
    project: str | os.PathLike[str] = ".",
    params: Mapping[str, Any] | None = None,
    allow: Iterable[str | Grant] = (),
    limits: Iterable[str] | AskedLimits = (),
    parallel: int | None = None,
    sequential: bool = False,
    timeout_s: float | None = None,
    require: Iterable[str] = (),
    observers: Iterable[Observer] = (),
    ask: Asker | None = None,
) -> Prepared:
    """Get a run ready up to its first operation: as `run`, but ``ask`` may be asked for what is missing."""
    grants = tuple(parse_grant(grant) if isinstance(grant, str) else grant for grant in allow)
    requirements = frozenset(require)
    if unknown := requirements - set(REQUIREMENTS):
        raise UsageError(f"{min(unknown)!r} is nothing that can be required", f"one of {', '.join(REQUIREMENTS)}")
    if feature is not None:
        check_feature(feature)
    slots = 1 if sequential else parallel or parallel_limit(os.environ)
    root = Path(os.path.realpath(project))
    # Workers first: they start while pydantic is loaded and the template is read.
    dispatcher = warm(str(root), parallel=slots)
    try:
        from sage_sandbox.grants.approval import approve
        from sage_sandbox.grants.limits import machine_ceilings, parse_limit_options, workflow_limits
        from sage_sandbox.grants.memory import Memory
        from sage_sandbox.workflow.loading import load
        from sage_sandbox.workflow.parameters import resolve_params
        from sage_sandbox.workflow.templates import find

        workflow = load(find(os.fspath(template), root))
        feature = feature or slug(workflow.name)
        artifacts = _artifacts_root(root, feature)
        values = resolve_params(workflow, _typed(params or {}))
        overrides = limits if isinstance(limits, AskedLimits) else parse_limit_options(limits)
        settled = workflow_limits(workflow, overrides, machine_ceilings())
        review = approve(workflow, grants, root, memory=Memory.of_user(), ask=ask)
        runner = Runner(
            workflow,
            feature=feature,
            params=values,
            policies=review.policies,
            limits=settled,
            project=str(root),
            parallel=slots,
            sequential=sequential,
            timeout_s=timeout_s,
            observers=observers,
            artifacts_root=str(artifacts),
            require_cgroup="memory=cgroup" in requirements,
            dispatcher=dispatcher,
        )
    except BaseException:
        dispatcher.close()
        raise
    return Prepared(workflow, runner, review.notices)


def check_feature(feature: str) -> None:
    """UsageError unless the name can be part of a path: checked before any path is built from it."""
    if not FEATURE.fullmatch(feature):
        raise UsageError(f"{feature!r} is not a feature name", "use 1 to 64 of a-z, 0-9 and -, not - first")


def slug(name: str) -> str:
    """The feature of a workflow that nobody named one for."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:FEATURE_MAX].rstrip("-") or "workflow"


def _artifacts_root(project: Path, feature: str) -> Path:
    """Where artifacts go; UsageError if the project has put something else there than folders of its own."""
    root = project / ".sage" / "artifacts"
    for place in (root.parent, root, root / feature):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UsageError(f"{place} is not a folder", "the project may have brought it; remove it")
    return root


def _typed(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they would be typed: the command line's reader is the only one."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}


def _seconds(timeout: float | str) -> float:
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"timeout: {error}") from error
