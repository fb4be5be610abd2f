"""The loop on a simulated clock: what starts when, and what follows from what ended."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_slots import FakeSlots, Fate, at_once
from fake_supervisor import fulfilled
from hypothesis import given
from hypothesis import strategies as st
from workflows import flow, many, op, single

from sage_sandbox.dispatch.memory import Memory
from sage_sandbox.dispatch.reports import Returned, Withheld
from sage_sandbox.document import RunResult
from sage_sandbox.errors import ExitCode, SandboxUnavailable, UsageError
from sage_sandbox.events import Event, Notice, OperationStarted, PhaseSettled, PhaseStarted, RunSettled, RunStarted
from sage_sandbox.operations.base import Task
from sage_sandbox.outcome import Contact, Outcome, rejected
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.runner import Runner, parallel_limit, workflow_timeout
from sage_sandbox.workflow.definition import Operation, Workflow

PLENTY = Memory(1000, 1000)
KEY = ("a", "op-1")


def run(workflow: Workflow, slots: FakeSlots | None = None, **options: Any) -> RunResult:
    slots = slots or FakeSlots(fate=follow_code)
    defaults: dict[str, Any] = {
        "feature": "test",
        "memory": lambda: Memory(1 << 40, 1 << 40),
        "environ": {},
        "jitter": lambda: 1.0,
    }
    return Runner(workflow, dispatcher=slots, clock=slots.clock, **defaults | options).run()


def follow_code(task: Task) -> Fate:
    """``WORD`` or ``WORD SECONDS``: ok, fail, limit, timeout, lost, inputs, params, hang."""
    word, _, rest = task.job.code.partition(" ")
    seconds = float(rest or 0)
    fates: dict[str, Callable[[], Outcome | None]] = {
        "ok": fulfilled,
        "inputs": lambda: Outcome("fulfilled", result=task.job.inputs),
        "params": lambda: Outcome("fulfilled", result=task.job.params),
        "argv": lambda: fulfilled(list(task.job.argv)),
        "fail": lambda: rejected("error", "no"),
        "limit": lambda: rejected("limit", "memory limit 256 MiB exceeded"),
        "timeout": lambda: rejected("timeout", "operation timeout exceeded"),
        "lost": lambda: None,
        "hang": fulfilled,
    }
    return (1e9 if word == "hang" else seconds), fates[word]()


def statuses(result: RunResult) -> dict[str, str]:
    return {phase.id: phase.status for phase in result.phases}


def start_times(slots: FakeSlots) -> dict[str, float]:
    return {f"{task.phase}/{task.operation}": when for when, task in reversed(slots.sent)}


# -- order -------------------------------------------------------------------------------------------------------


def test_a_phase_starts_the_moment_its_own_dependencies_are_done() -> None:
    slots = FakeSlots(fate=follow_code)
    run(flow(single("a", code="ok 1"), single("b", code="ok 5"), single("c", "a"), single("d", "b", "c")), slots)

    assert start_times(slots) == {"a/op-1": 0, "b/op-1": 0, "c/op-1": 1, "d/op-1": 5}


def test_four_waits_take_as_long_as_the_longest() -> None:
    slots = FakeSlots(fate=follow_code)
    run(flow(many("a", *(op(f"op-{n}", f"ok {s}") for n, s in enumerate([45, 30, 40, 20])))), slots)

    assert slots.now == 45


def test_no_more_run_at_once_than_there_are_slots() -> None:
    slots = FakeSlots(parallel=2, fate=follow_code)
    result = run(flow(many("a", *(op(f"op-{n}", "ok 1") for n in range(6)))), slots)

    assert slots.now == 3
    assert result.metrics.parallel_max == 2


@st.composite
def timed_graphs(draw: st.DrawFn) -> Workflow:
    size = draw(st.integers(1, 10))
    phases = []
    for n in range(size):
        needs = sorted(set(draw(st.lists(st.integers(0, n - 1), max_size=3)))) if n else []
        word = draw(st.sampled_from(["ok", "ok", "ok", "fail"]))
        phases.append(single(f"p{n}", *(f"p{d}" for d in needs), code=f"{word} {draw(st.integers(0, 5))}"))
    return flow(*phases)


@given(timed_graphs())
def test_every_phase_starts_after_its_dependencies_and_never_later_than_possible(workflow: Workflow) -> None:
    slots = FakeSlots(parallel=100, fate=follow_code)
    result = run(workflow, slots)
    started, ended, good = start_times(slots), dict[str, float](), dict[str, bool]()
    for phase in workflow.phases:
        good[phase.id] = all(good[name] for name in phase.dependencies)
        expected = max((ended[name] for name in phase.dependencies), default=0.0)
        if good[phase.id]:
            assert started[f"{phase.id}/op-1"] == expected
        else:
            assert f"{phase.id}/op-1" not in started
            assert result.phase(phase.id).status == "blocked"
        word, _, seconds = phase.operations[0].code.partition(" ")
        ended[phase.id] = expected + float(seconds)
        good[phase.id] &= word == "ok"

    assert result.status == ("completed" if all(good.values()) else "failed")


def _big(size: int, edges: int) -> Workflow:
    random_source = random.Random(7)
    needs: list[set[int]] = [set() for _ in range(size)]
    for _ in range(edges):
        child = random_source.randrange(1, size)
        needs[child].add(random_source.randrange(child))
    return flow(*(single(f"p{n}", *(f"p{d}" for d in sorted(names)), code="inputs") for n, names in enumerate(needs)))


@pytest.mark.parametrize(("size", "edges"), [(2_000, 6_000), (10_000, 15_000)])
def test_a_large_graph_runs_every_phase_once_with_its_inputs(size: int, edges: int) -> None:
    def fate(task: Task) -> Fate:
        return 0.001, fulfilled(sorted(json.loads(task.job.inputs)))

    slots, workflow = FakeSlots(fate=fate), _big(size, edges)
    result = run(workflow, slots)

    assert result.status == "completed"
    assert Counter(task.phase for _, task in slots.sent) == {phase.id: 1 for phase in workflow.phases}
    for phase in workflow.phases:
        assert result.outcome(phase.id, "op-1").value() == sorted(phase.dependencies)


def test_the_cost_of_a_phase_does_not_grow_with_their_number() -> None:
    def measure(size: int) -> float:
        started = time.process_time()
        run(_big(size, size), FakeSlots())
        return (time.process_time() - started) / size

    measure(200)

    assert measure(8_000) < 4 * min(measure(1_000) for _ in range(3))


# -- inputs and references ---------------------------------------------------------------------------------------


def test_inputs_hold_each_direct_dependencys_result() -> None:
    phases = (
        single("one", code="ok"),
        many("list", op("x", "ok"), needs=("one",)),
        many("some", op("good"), op("also"), op("more"), op("bad", "fail")),
        single("last", "list", "some", code="inputs"),
    )
    result = run(flow(*phases))

    expected = {"list": {"x": "ok"}, "some": {"good": "ok", "also": "ok", "more": "ok", "bad": None}}
    assert result.outcome("last", "op-1").value() == expected


def test_a_single_operation_rejected_under_the_threshold_is_none() -> None:
    phases = (single("a", code="fail", success_threshold=0.0), single("b", "a", code="inputs"))
    result = run(flow(*phases))

    assert statuses(result) == {"a": "degraded", "b": "completed"}
    assert result.outcome("b", "op-1").value() == {"a": None}


def test_references_are_resolved_just_before_the_start() -> None:
    params = {"f": "${feature}", "p": "${params.top}", "r": "${a.x}", "text": "n=${a.y}"}
    phases = (many("a", op("x"), op("y")), single("b", "a", code="params", op_fields={"params": params}))
    result = run(flow(*phases), params={"top": 3})

    assert result.outcome("b", "op-1").value() == {"f": "test", "p": 3, "r": "ok", "text": "n=ok"}


def test_a_reference_that_leads_nowhere_rejects_before_the_start() -> None:
    slots = FakeSlots(fate=follow_code)
    result = run(flow(single("a"), single("b", "a", op_fields={"params": "${a.x}", "retries": 3})), slots)
    outcome = result.outcome("b", "op-1")

    assert (outcome.reason, len(outcome.attempts)) == ("error", 1)
    assert "leads nowhere" in outcome.error
    assert [task.phase for _, task in slots.sent] == ["a"]
    assert result.exit_code == ExitCode.FAILED


# -- how it ends -------------------------------------------------------------------------------------------------


def test_a_parallel_phase_under_its_threshold_pauses() -> None:
    phases = (many("a", op("x"), op("y", "fail")), single("b", "a"), single("c", "b"), single("free"))
    result = run(flow(*phases))

    assert statuses(result) == {"a": "failed", "b": "blocked", "c": "blocked", "free": "completed"}
    assert (result.status, result.exit_code) == ("paused", 3)
    assert [(e.phase, e.operation, e.reason) for e in result.errors] == [
        ("a", "y", "error"),
        ("b", "", "blocked"),
        ("c", "", "blocked"),
    ]
    assert "nothing was saved: run it again" == result.hint


def test_a_failed_single_operation_fails_the_run() -> None:
    result = run(flow(single("a", code="limit"), single("b")))

    assert (result.status, result.exit_code, result.ok) == ("failed", 1, False)
    assert statuses(result) == {"a": "failed", "b": "completed"}


def test_everything_done_is_completed() -> None:
    result = run(flow(single("a")))

    assert (result.status, result.exit_code, result.ok, result.hint, result.errors) == ("completed", 0, True, "", ())


def test_a_phase_timeout_stops_what_runs_and_keeps_what_is_done() -> None:
    slots = FakeSlots(parallel=2, fate=follow_code)
    phase = many("a", op("done", "ok 1"), op("stuck", "hang"), op("next", "hang"), op("waiting"), timeout_s=600)
    result = run(flow(phase, single("b", "a"), single("free", code="ok 500")), slots, timeout_s=5000)

    assert statuses(result) == {"a": "timeout", "b": "blocked", "free": "completed"}
    assert (result.status, result.exit_code) == ("paused", 124)
    assert result.outcome("a", "done").ok
    for name in ("stuck", "next", "waiting"):
        assert result.outcome("a", name).reason == "timeout"
        assert result.outcome("a", name).error == "phase timeout exceeded (10 min)"
    assert result.phase("a").duration_s == 600
    assert "phase timeout exceeded (a > 10 min)" in [error.message for error in result.errors]


def test_a_phase_timeout_counts_from_its_first_operations_start() -> None:
    slots = FakeSlots(parallel=1, fate=follow_code)
    result = run(flow(single("a", code="ok 50"), single("b", code="ok 50", timeout_s=60)), slots)

    assert result.status == "completed"


def test_a_workflow_timeout_stops_everything() -> None:
    slots = FakeSlots(parallel=2, fate=follow_code)
    phases = (
        many("a", op("done", "ok 1"), op("stuck", "hang")),
        single("b", "a"),
        single("later", code="hang"),
        single("never"),
    )
    result = run(flow(*phases), slots, timeout_s=10)

    assert statuses(result) == {"a": "timeout", "b": "blocked", "later": "timeout", "never": "blocked"}
    assert (result.status, result.exit_code, slots.now) == ("paused", 124, 10)
    assert result.outcome("a", "done").ok
    assert result.errors[0].message == "workflow timeout exceeded (10 s)"
    assert result.errors[-1].message == "not started: the run did not complete"


def test_a_cancel_stops_everything_and_wins() -> None:
    slots = FakeSlots(parallel=2, fate=follow_code)
    events: list[Event] = []
    phases = (
        single("a", code="ok 1"),
        single("b", "a", code="hang"),
        single("c", code="hang"),
        single("d", code="hang"),
    )
    runner = Runner(
        flow(*phases), feature="f", dispatcher=slots, clock=slots.clock, environ={}, observers=[events.append]
    )
    slots.on_wait = lambda: runner.cancel() if slots.now >= 1 else None
    result = runner.run()

    assert statuses(result) == {"a": "completed", "b": "blocked", "c": "cancelled", "d": "cancelled"}
    assert (result.status, result.exit_code, slots.closed) == ("cancelled", 130, True)
    assert isinstance(events[-1], RunSettled)


def test_a_cancel_before_the_start_starts_nothing() -> None:
    slots = FakeSlots()
    runner = Runner(flow(single("a")), feature="f", dispatcher=slots, clock=slots.clock, environ={})
    runner.cancel()
    result = runner.run()

    assert (result.status, slots.sent, statuses(result)) == ("cancelled", [], {"a": "blocked"})


def test_what_finished_although_it_was_cancelled_is_kept() -> None:
    class Quick(FakeSlots):
        def cancel(self, tickets: Any) -> None:
            """The outcomes were already under way."""

    slots = Quick(parallel=1, fate=lambda _task: (5.0, fulfilled()))
    result = run(flow(single("a", timeout_s=4)), slots)

    assert (result.status, slots.now) == ("completed", 5)


def test_a_sandbox_that_is_withheld_ends_the_run() -> None:
    slots = FakeSlots()
    slots._news.append(Withheld(SandboxUnavailable("no user namespaces", "", "userns")))

    with pytest.raises(SandboxUnavailable, match="no user namespaces"):
        run(flow(single("a")), slots)
    assert slots.closed


# -- attempts ----------------------------------------------------------------------------------------------------


def _fails_first(times: int, outcome: Outcome | None) -> Callable[[Task], Fate]:
    return lambda task: (1.0, outcome if task.attempt <= times else fulfilled())


@pytest.mark.parametrize("reason", ["error", "timeout"])
def test_retries_wait_longer_each_time_and_are_recorded(reason: Any) -> None:
    slots = FakeSlots(fate=_fails_first(2, replace(rejected(reason, "no"), duration_s=1.0)))
    result = run(flow(single("a", op_fields={"retries": 2})), slots)
    outcome = result.outcome("a", "op-1")

    assert [when for when, _ in slots.sent] == [0, 1.5, 3.5]
    assert [(a.status, a.reason, a.error, a.duration_s) for a in outcome.attempts] == [
        ("rejected", reason, "no", 1.0),
        ("rejected", reason, "no", 1.0),
        ("fulfilled", None, "", 0.0),
    ]
    assert [dict(task.job.env)["SAGE_ATTEMPT"] for _, task in slots.sent] == ["1", "2", "3"]
    assert len({dict(task.job.env)["SAGE_IDEMPOTENCY_KEY"] for _, task in slots.sent}) == 1
    assert result.metrics.retries == 2


def test_what_every_attempt_turned_to_is_in_the_outcome() -> None:
    one = Contact("h.example", 443, "allowed", times=1, sent=2, received=3)
    slots = FakeSlots(fate=_fails_first(2, replace(rejected("error", "no"), contacts=(one,))))
    result = run(flow(single("a", op_fields={"retries": 2})), slots)

    assert result.outcome("a", "op-1").ok
    assert result.outcome("a", "op-1").contacts == (replace(one, times=2, sent=4, received=6),)


def test_retries_end() -> None:
    slots = FakeSlots(fate=_fails_first(9, rejected("error", "no")))
    result = run(flow(single("a", op_fields={"retries": 2})), slots)

    assert (result.status, len(result.outcome("a", "op-1").attempts)) == ("failed", 3)


def test_without_retries_there_is_one_attempt() -> None:
    slots = FakeSlots(fate=_fails_first(9, rejected("error", "no")))

    assert len(run(flow(single("a")), slots).outcome("a", "op-1").attempts) == 1


@pytest.mark.parametrize("reason", ["denied", "limit", "cancelled"])
def test_denied_limit_and_cancelled_are_final(reason: Any) -> None:
    slots = FakeSlots(fate=_fails_first(9, rejected(reason, "no")))
    run(flow(single("a", op_fields={"retries": 5})), slots)

    assert len(slots.sent) == 1


def test_a_lost_workers_operation_is_repeated_once_if_that_is_safe() -> None:
    slots = FakeSlots(fate=_fails_first(1, None))
    outcome = run(flow(single("a")), slots).outcome("a", "op-1")

    assert [attempt.reason for attempt in outcome.attempts] == ["worker lost", None]
    assert [when for when, _ in slots.sent] == [0, 1]


def test_it_is_repeated_only_once() -> None:
    slots = FakeSlots(fate=_fails_first(9, None))
    outcome = run(flow(single("a")), slots).outcome("a", "op-1")

    assert (outcome.reason, len(slots.sent)) == ("worker lost", 2)


def test_an_operation_that_writes_is_not_repeated_unasked() -> None:
    slots = FakeSlots(fate=_fails_first(1, None))
    outcome = run(flow(single("a")), slots, policies={KEY: Policy(write=("/x",))}).outcome("a", "op-1")

    assert (outcome.reason, len(slots.sent)) == ("worker lost", 1)


def test_a_templates_retries_cover_a_lost_worker() -> None:
    slots = FakeSlots(fate=_fails_first(1, None))
    workflow = flow(single("a", op_fields={"retries": 1}))
    outcome = run(workflow, slots, policies={KEY: Policy(write=("/x",))}).outcome("a", "op-1")

    assert outcome.ok


def test_a_retry_that_waits_is_ended_by_the_phase_timeout() -> None:
    slots = FakeSlots(fate=_fails_first(9, rejected("error", "no")))
    result = run(flow(single("a", op_fields={"retries": 10}, timeout_s=1.2)), slots)
    outcome = result.outcome("a", "op-1")

    assert (result.exit_code, outcome.reason, [a.reason for a in outcome.attempts]) == (124, "timeout", ["error"])


def test_a_returned_task_is_sent_again_as_the_same_attempt() -> None:
    class Giving(FakeSlots):
        def send(self, tasks: tuple[Task, ...]) -> None:
            if self.sent:
                super().send(tasks)
            else:
                self.sent += [(self.now, task) for task in tasks]
                self._news += [Returned(task.ticket) for task in tasks]

    slots = Giving()
    result = run(flow(single("a")), slots)

    assert [task.attempt for _, task in slots.sent] == [1, 1]
    assert len(result.outcome("a", "op-1").attempts) == 1


def test_a_task_returned_by_a_cancel_is_cancelled() -> None:
    class Returning(FakeSlots):
        def cancel(self, tickets: Any) -> None:
            self._news += [Returned(ticket) for ticket in tickets]

    slots = Returning(fate=follow_code)
    outcome = run(flow(single("a", code="hang", timeout_s=3)), slots).outcome("a", "op-1")

    assert (outcome.reason, outcome.attempts) == ("timeout", ())


# -- what it is given --------------------------------------------------------------------------------------------


def test_unset_means_nothing() -> None:
    slots = FakeSlots()
    run(flow(single("a", op_fields={"policy": Policy(read=("/",))})), slots)
    job = slots.sent[0][1].job

    assert (job.policy, job.limits, job.artifacts) == (Policy(), Limits(), "")


def test_policies_limits_and_artifacts_are_passed_on() -> None:
    slots = FakeSlots()
    policy, limits = Policy(read=("/src",), env=("CI",)), Limits(pids=2)
    options = {"policies": {KEY: policy}, "limits": {KEY: limits}, "artifacts": True, "environ": {"CI": "1"}}
    run(flow(single("a")), slots, require_cgroup=True, project="/usr", **options)
    job = slots.sent[0][1].job

    assert (job.policy, job.limits, job.artifacts) == (policy, limits, "/usr/.sage/artifacts/test/a/op-1")
    assert (dict(job.env)["CI"], job.require_cgroup, job.project) == ("1", True, "/usr")


def test_short_memory_means_less_parallel_and_is_said_once() -> None:
    slots = FakeSlots(fate=follow_code)
    events: list[Event] = []
    workflow = flow(many("a", *(op(f"op-{n}", "ok 1") for n in range(3))))
    result = run(workflow, slots, memory=lambda: Memory(1000, 99), observers=[events.append])

    assert (result.status, result.metrics.parallel_max, slots.now) == ("completed", 1, 3)
    assert [event.level for event in events if isinstance(event, Notice)] == ["warning"]


def test_operations_start_again_when_memory_is_back() -> None:
    slots = FakeSlots(fate=follow_code)
    limits = {("a", f"op-{n}"): Limits(memory=500) for n in range(3)}

    def memory() -> Memory:
        return Memory(1000, 400 if slots.now < 5 else 1000)

    run(flow(many("a", *(op(f"op-{n}", "ok 100") for n in range(3)))), slots, limits=limits, memory=memory)
    times = sorted(when for when, _ in slots.sent)

    assert times[0] == 0
    assert times[1] == times[2] == pytest.approx(5, abs=0.3)


def test_events_tell_the_story_in_order() -> None:
    events: list[Event] = []
    run(flow(single("a", code="fail"), single("b", "a")), observers=[events.append])

    story = "RunStarted PhaseStarted OperationStarted OperationSettled PhaseSettled PhaseSettled RunSettled"
    assert [type(event).__name__ for event in events] == story.split()
    assert isinstance(events[0], RunStarted)
    assert (events[0].phases, events[0].operations) == (2, 2)
    assert events[1] == PhaseStarted("a", "A", 1)
    assert events[2] == OperationStarted("a", "op-1", 1)
    assert isinstance(events[5], PhaseSettled)
    assert (events[5].phase, events[5].status) == ("b", "blocked")


def test_an_observer_that_fails_is_dropped_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []

    def bad(event: Event) -> None:
        heard.append(event)
        raise ValueError("\x1b[31m")

    result = run(flow(single("a")), observers=[bad])

    assert (result.status, len(heard)) == ("completed", 1)
    assert capsys.readouterr().err == "⚠ an observer failed and was dropped: ValueError: \\x1b[31m\n"


@pytest.mark.parametrize("feature", ["", "-a", "A", "a/b", "../x", "a" * 65, "a\n"])
def test_a_feature_that_is_no_name_is_refused(feature: str) -> None:
    with pytest.raises(UsageError, match="feature"):
        Runner(flow(single("a")), feature=feature)


def test_the_workflow_timeout_is_the_users_then_the_templates_then_the_environments() -> None:
    environ = {"SAGE_WORKFLOW_TIMEOUT": "5000"}

    assert workflow_timeout(1.0, flow(timeout_s=2.0), environ) == 1.0
    assert workflow_timeout(None, flow(timeout_s=2.0), environ) == 2.0
    assert workflow_timeout(None, flow(), environ) == 5.0
    assert workflow_timeout(None, flow(), {}) == 600.0
    with pytest.raises(UsageError, match="SAGE_WORKFLOW_TIMEOUT"):
        workflow_timeout(None, flow(), {"SAGE_WORKFLOW_TIMEOUT": "soon"})


def test_the_parallel_limit_comes_from_the_environment() -> None:
    assert parallel_limit({}) == 4
    assert parallel_limit({"SAGE_PARALLEL_LIMIT": "2"}) == 2
    for text in ("0", "-1", "many"):
        with pytest.raises(UsageError, match="SAGE_PARALLEL_LIMIT"):
            parallel_limit({"SAGE_PARALLEL_LIMIT": text})


def test_a_command_gets_its_references_as_arguments() -> None:
    slots = FakeSlots()
    operation = Operation("op-1", "command", argv=("echo", "--top=${params.top}"))
    run(flow(many("a", operation)), slots, params={"top": 3})

    assert slots.sent[0][1].job.argv == ("echo", "--top=3")


def test_at_once_is_the_default_fate() -> None:
    assert run(flow(single("a")), FakeSlots(fate=at_once)).ok
