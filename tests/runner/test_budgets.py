"""Budgets on a simulated clock: when a run is paused, what of it ends, and what counts afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_slots import FakeSlots, Fate
from fake_supervisor import fulfilled
from workflows import flow, many, op, single

from sage_sandbox.dispatch.memory import Memory
from sage_sandbox.document import RunResult, document
from sage_sandbox.errors import ExitCode, UsageError
from sage_sandbox.events import Event, Notice, RunSettled
from sage_sandbox.operations.base import Task
from sage_sandbox.outcome import Outcome, Usage, added_up, rejected
from sage_sandbox.providers import Price
from sage_sandbox.runner import Runner
from sage_sandbox.spending import Ledger, Spent, read_spent
from sage_sandbox.workflow.definition import Budgets, Workflow

USAGE = Usage("a/m", "a", "m-1", input=60, output=40)
PRICE = Price(1.0, 10.0, 0.0, 0.0)


def follow_code(task: Task) -> Fate:
    """``ok`` or ``fail``, then how many tokens it takes, then how many seconds."""
    word, tokens, seconds = (*task.job.code.split(), "0", "0")[:3]
    usage = (replace(USAGE, input=int(tokens), output=0),) if int(tokens) else ()
    outcome = fulfilled() if word == "ok" else rejected("error", "no")
    return float(seconds), replace(outcome, usage=usage)


def run(workflow: Workflow, slots: FakeSlots | None = None, **options: Any) -> RunResult:
    slots = slots or FakeSlots(fate=follow_code)
    defaults: dict[str, Any] = {"feature": "t", "memory": lambda: Memory(1 << 40, 1 << 40), "environ": {}}
    return Runner(workflow, dispatcher=slots, clock=slots.clock, jitter=lambda: 0.0, **defaults | options).run()


def statuses(result: RunResult) -> list[str]:
    return [phase.status for phase in result.phases]


CHAIN = flow(single("a", code="ok 60"), single("b", "a", code="ok 60"), single("c", "b", code="ok 60"))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (None, ["completed", "completed", "completed"]),
        (121, ["completed", "completed", "completed"]),
        (120, ["completed", "completed", "blocked"]),
        (60, ["completed", "blocked", "blocked"]),
        (1, ["completed", "blocked", "blocked"]),
    ],
)
def test_nothing_starts_once_a_budget_is_reached(tokens: int | None, expected: list[str]) -> None:
    result = run(replace(CHAIN, budgets=Budgets(tokens=tokens)))

    assert statuses(result) == expected
    if "blocked" in expected:
        assert (result.status, result.exit_code) == ("paused", ExitCode.PAUSED)
        assert (result.errors[0].phase, result.errors[0].reason) == ("", "budget_exceeded")
        assert result.errors[0].message.startswith("budget_exceeded: ")


@pytest.mark.parametrize(("tokens", "told"), [(170, True), (180, True), (181, False)])
def test_a_run_that_ends_with_its_budget_is_complete_and_says_so(tokens: int, told: bool) -> None:
    events: list[Event] = []
    result = run(replace(CHAIN, budgets=Budgets(tokens=tokens)), observers=(events.append,))
    notices = [event.text for event in events if isinstance(event, Notice)]

    assert "completed" == result.status
    assert told == (
        f"budget_exceeded: 180 of {tokens} tokens are spent; the last phase had begun, and the run is complete"
        in notices
    )


def test_what_runs_when_a_budget_is_reached_may_end_and_is_kept() -> None:
    slots = FakeSlots(parallel=2, fate=follow_code)
    operations = (op("x", "ok 50 1"), op("y", "ok 50 9"), op("z", "ok 50 1"))
    events: list[Any] = []
    result = run(
        flow(many("a", *operations), single("b", "a"), budgets=Budgets(tokens=50)), slots, observers=(events.append,)
    )
    x, y, z = (result.outcome("a", name) for name in "xyz")

    assert (x.ok, y.ok, z.reason) == (True, True, "budget_exceeded")
    assert statuses(result) == ["paused", "blocked"]
    assert slots.now == 9
    assert len(slots.sent) == 2
    assert "budget_exceeded: 50 of 50 tokens are spent" in z.error
    assert "--budget tokens=100" in z.hint
    assert [notice.text for notice in events if isinstance(notice, Notice)] == [
        "budget_exceeded: 50 of 50 tokens are spent; to go on, raise it: resume with --budget tokens=100"
    ]


def test_no_retry_is_made_beyond_a_budget() -> None:
    slots = FakeSlots(fate=follow_code)
    result = run(flow(single("a", code="fail 60", op_fields={"retries": 5}), budgets=Budgets(tokens=100)), slots)

    assert len(slots.sent) == 2
    assert result.outcome("a", "op-1").reason == "budget_exceeded"
    assert result.outcome("a", "op-1").usage[0].total == 120
    assert result.outcome("a", "op-1").usage[0].times == 2


def test_a_budget_of_time_ends_what_runs() -> None:
    slots = FakeSlots(fate=follow_code)
    result = run(flow(many("a", op("x", "ok 0 1"), op("y", "ok 0 99")), budgets=Budgets(time_s=5.0)), slots)

    assert slots.now == 5
    assert (result.outcome("a", "x").ok, result.outcome("a", "y").reason) == (True, "budget_exceeded")
    assert (statuses(result), result.exit_code) == (["paused"], ExitCode.PAUSED)
    assert "5 s of running are over" in result.errors[0].message
    assert "--budget time=10000" in result.errors[0].hint


def test_time_that_earlier_processes_took_counts() -> None:
    slots = FakeSlots(fate=follow_code)
    ledger = Ledger(Budgets(time_s=5.0), before=Spent(time_s=4.0))

    assert run(flow(single("a", code="ok 0 3")), slots, ledger=ledger).exit_code == ExitCode.PAUSED
    assert slots.now == 1
    assert run(flow(single("a")), ledger=Ledger(Budgets(time_s=5.0), before=Spent(time_s=5.0))).phases[0].status == (
        "blocked"
    )


def test_tokens_that_earlier_processes_took_count() -> None:
    before = Spent((replace(USAGE, input=100, output=0),))
    result = run(CHAIN, ledger=Ledger(Budgets(tokens=150), before=before))

    assert statuses(result) == ["completed", "blocked", "blocked"]
    assert result.metrics.model_tokens == 160


@pytest.mark.parametrize(("cost", "completed"), [(0.00011, 2), (0.00013, 3), (0.00001, 1)])
def test_a_budget_of_cost_goes_by_the_users_prices(cost: float, completed: int) -> None:
    result = run(CHAIN, ledger=Ledger(Budgets(cost=cost), {"a/m": PRICE}))

    assert statuses(result).count("completed") == completed
    assert result.metrics.cost == pytest.approx(completed * 60e-6)


def test_a_cost_that_is_not_known_is_no_cost() -> None:
    assert run(CHAIN).metrics.cost is None
    with pytest.raises(UsageError, match="needs to know what a/m costs"):
        run(replace(CHAIN, budgets=Budgets(cost=1.0)))
    assert run(flow(single("a", code="ok 60"), budgets=Budgets(cost=1.0))).status == "completed"


def test_a_cancel_is_obeyed_while_what_runs_may_end() -> None:
    slots = FakeSlots(parallel=3, fate=follow_code)
    runner: Runner

    def cancel_late() -> None:
        if slots.now >= 1:
            runner.cancel()

    slots.on_wait = cancel_late
    operations = (op("x", "ok 50 1"), op("y", "ok 0 3"), op("long", "ok 50 9"), op("z"))
    workflow = flow(many("a", *operations), budgets=Budgets(tokens=50))
    runner = Runner(
        workflow, feature="t", dispatcher=slots, clock=slots.clock, memory=lambda: Memory(1 << 40, 1 << 40), environ={}
    )
    result = runner.run()

    assert (result.status, slots.now) == ("cancelled", 3)


def test_the_document_says_what_models_took_and_that_it_was_measured() -> None:
    events: list[Any] = []
    result = run(flow(single("a", code="ok 60")), observers=(events.append,))
    metrics = document(result)["results"]["metrics"]
    phase = document(result)["results"]["phases"][0]

    assert metrics["models"]["tokens"] == 60
    assert metrics["models"]["measured"] is True
    assert metrics["models"]["byModel"] == phase["operations"][0]["usage"]
    assert metrics["totalTokens"] == 60 + metrics["handedBack"]["tokens"]
    assert phase["metrics"]["modelTokens"] == 60
    assert phase["metrics"]["tokens"] == 60 + metrics["handedBack"]["tokens"]
    assert [event.usage for event in events if isinstance(event, RunSettled)] == [result.metrics.usage]
    assert document(run(flow(single("a"))))["results"]["metrics"]["models"] is None


def test_usage_is_added_up_by_who_was_asked_and_who_answered() -> None:
    other = replace(USAGE, model="m-2")
    guessed = replace(USAGE, measured=False)

    assert added_up([USAGE, other, USAGE, guessed]) == (
        replace(USAGE, input=120, output=80, times=2),
        other,
        guessed,
    )


def test_what_was_spent_is_read_as_it_was_written() -> None:
    spent = Spent((USAGE,), 1.5)

    assert read_spent(spent.document()) == spent
    assert read_spent({}) == Spent()
    assert read_spent({"usage": [{**spent.document()["usage"][0], "later": 1}]}).usage == (USAGE,)
    assert Ledger().note() == {}
    assert Outcome("fulfilled").usage == ()
