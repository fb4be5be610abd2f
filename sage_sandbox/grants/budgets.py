"""``--budget``: the most that a run may spend, as its user says it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sage_sandbox.errors import UsageError
from sage_sandbox.policy import parse_duration
from sage_sandbox.workflow.definition import Budgets


def _parse_tokens(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,14}", text):
        raise ValueError(f"{text!r} is not a number of tokens such as 50000")
    return int(text)


def _parse_cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not 0 < cost < math.inf:
        raise ValueError(f"{text!r} is not a cost such as 1.50")
    return cost


_PARSERS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "tokens": ("tokens", _parse_tokens),
    "cost": ("cost", _parse_cost),
    "time": ("time_s", parse_duration),
}


def parse_budget_options(texts: Iterable[str]) -> Budgets:
    """All ``--budget NAME=VALUE`` of one command line; the last of a name holds. UsageError on anything else."""
    return Budgets(**dict(_parse(text) for text in texts))


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if name not in _PARSERS:
        from difflib import get_close_matches

        close = get_close_matches(name, _PARSERS, n=1)
        hint = f"did you mean {close[0]}?" if close else "one of " + ", ".join(_PARSERS)
        raise UsageError(f"--budget does not know {name!r}", hint)
    if not equals:
        raise UsageError(f"--budget {name} needs a value", f"write --budget {name}=VALUE")
    field, parse = _PARSERS[name]
    try:
        return field, parse(value)
    except ValueError as error:
        raise UsageError(f"--budget {name}: {error}") from error
