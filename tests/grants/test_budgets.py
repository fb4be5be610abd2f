from __future__ import annotations

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.grants.budgets import parse_budget_options
from sage_sandbox.workflow.definition import Budgets


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], Budgets()),
        (["tokens=50000"], Budgets(tokens=50_000)),
        (["cost=1.50", "time=10m"], Budgets(cost=1.5, time_s=600.0)),
        (["tokens=1", "tokens=2"], Budgets(tokens=2)),
    ],
)
def test_budgets_are_read_as_typed(texts: list[str], expected: Budgets) -> None:
    assert parse_budget_options(texts) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("token=5", "does not know 'token'"),
        ("money=5", "does not know 'money'"),
        ("tokens", "needs a value"),
        ("tokens=0", "is not a number of tokens"),
        ("tokens=1e3", "is not a number of tokens"),
        ("cost=0", "is not a cost"),
        ("cost=nan", "is not a cost"),
        ("cost=free", "is not a cost"),
        ("time=soon", "is not a duration"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        parse_budget_options([text])
