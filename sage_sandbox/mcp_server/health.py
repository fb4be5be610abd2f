"""Whether the server can do what it is for: what it serves, and what is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sage_sandbox
from sage_sandbox.errors import SageError
from sage_sandbox.escaping import clip

if TYPE_CHECKING:
    from sage_sandbox.mcp_server.runs import Runs

_RUNS_READ: Final = 50
"""How many runs are looked at: enough to notice a key that is not here."""
_PROBLEMS_MOST: Final = 5
_TEXT_MOST: Final = 300


def health(runs: Runs) -> dict[str, Any]:
    """How the server is, without starting anything. It never raises what the project is the reason for."""
    from mcp.types import LATEST_PROTOCOL_VERSION

    features, problems = _features(runs)
    found: list[str] = []
    for feature in features[:_RUNS_READ]:
        try:
            found += [feature] if runs.standing(feature).status == "running" else []
        except (SageError, OSError) as error:
            problems.append(f"{feature}: {error}")
    return {
        "status": "degraded" if problems else "ok",
        "version": sage_sandbox.__version__,
        "protocol": LATEST_PROTOCOL_VERSION,
        "project": str(runs.project),
        "templates": runs.templates()[:_RUNS_READ],
        "runs": len(features),
        "running": found,
        "problems": [clip(problem, _TEXT_MOST) for problem in problems[:_PROBLEMS_MOST]],
    }


def _features(runs: Runs) -> tuple[list[str], list[str]]:
    try:
        return runs.features(), []
    except (SageError, OSError) as error:
        return [], [str(error)]
