"""How what is wrong with a template looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sage_sandbox.errors import Problem


def render_problems(problems: Sequence[Problem]) -> str:
    """One block a problem, ``✗`` or ``⚠`` first, fit for a terminal; no line feed at the end."""
    return "\n".join(_block(problem) for problem in problems)


def _block(problem: Problem) -> str:
    from sage_sandbox.escaping import escape_lines

    mark = "✗" if problem.severity == "error" else "⚠"
    fix = f"\n  Fix: {escape_lines(problem.fix)}" if problem.fix else ""
    return f"{mark} {escape_lines(str(problem))}{fix}"
