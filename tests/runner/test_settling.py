from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import ExitCode
from sage_sandbox.events import PhaseStatus
from sage_sandbox.outcome import Contact, Outcome, gathered, rejected
from sage_sandbox.settling import BACKOFF_MAX_S, Frontier, backoff_s, may_retry, phase_status, run_status


@given(st.integers(1, 40), st.data(), st.floats(0, 1))
def test_a_phase_goes_on_when_the_share_is_reached(total: int, data: st.DataObject, threshold: float) -> None:
    fulfilled = data.draw(st.integers(0, total))
    expected = "failed" if fulfilled / total < threshold else "completed" if fulfilled == total else "degraded"

    assert phase_status(fulfilled, total, threshold) == expected


@pytest.mark.parametrize(
    ("fulfilled", "total", "status"), [(3, 4, "degraded"), (2, 4, "failed"), (74, 100, "failed"), (75, 100, "degraded")]
)
def test_three_quarters_are_enough(fulfilled: int, total: int, status: str) -> None:
    assert phase_status(fulfilled, total, 0.75) == status


statuses = st.sampled_from(["completed", "degraded", "failed", "blocked", "timeout", "cancelled"])


@given(st.lists(st.tuples(statuses, st.booleans()), max_size=8), st.booleans(), st.booleans())
def test_the_gravest_end_decides(phases: list[tuple[PhaseStatus, bool]], cancelled: bool, timed_out: bool) -> None:
    names = [name for name, _ in phases]
    if cancelled:
        expected = ("cancelled", 130)
    elif timed_out or "timeout" in names:
        expected = ("paused", 124)
    elif any(name == "failed" and not single for name, single in phases):
        expected = ("paused", 3)
    elif all(name in ("completed", "degraded") for name in names):
        expected = ("completed", 0)
    else:
        expected = ("failed", 1)

    assert run_status(phases, cancelled=cancelled, timed_out=timed_out) == expected


def test_what_all_attempts_turned_to_is_added_up() -> None:
    one = Contact("a", 1, "allowed", times=1, sent=2, received=3)
    other = Contact("a", 1, "refused", "no", times=1)

    assert gathered([one, other, one]) == (Contact("a", 1, "allowed", times=2, sent=4, received=6), other)
    assert gathered([]) == ()


def test_exit_codes_are_of_the_one_table() -> None:
    assert run_status([], cancelled=False, timed_out=False)[1] is ExitCode.DONE


@pytest.mark.parametrize("reason", ["error", "timeout", "worker lost"])
def test_what_may_pass_is_retried(reason: str) -> None:
    outcome = rejected(reason, "")  # type: ignore[arg-type]

    assert may_retry(outcome, 2, 1)
    assert not may_retry(outcome, 2, 2)
    assert not may_retry(outcome, 0, 0)
    assert not may_retry(outcome, 99, 10)


@pytest.mark.parametrize("reason", ["denied", "limit", "cancelled"])
def test_what_would_happen_again_is_not_retried(reason: str) -> None:
    assert not may_retry(rejected(reason, ""), 5, 0)  # type: ignore[arg-type]
    assert not may_retry(Outcome("fulfilled"), 5, 0)


@given(st.integers(0, 10), st.floats(0, 0.999))
def test_backoff_stays_in_its_growing_span(used: int, jitter: float) -> None:
    assert 0 <= backoff_s(used, lambda: jitter) <= min(BACKOFF_MAX_S, 0.5 * 2**used)


Graph = dict[str, tuple[str, ...]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Phases in an order in which each depends on earlier ones only."""
    size = draw(st.integers(1, 12))
    return {
        f"p{n}": tuple(f"p{d}" for d in draw(st.lists(st.integers(0, n - 1), max_size=4))) if n else ()
        for n in range(size)
    }


@given(graphs(), st.data())
def test_readiness_and_blocking_agree_with_asking_every_time(graph: Graph, data: st.DataObject) -> None:
    dependents: dict[str, tuple[str, ...]] = {p: tuple(q for q in graph if p in graph[q]) for p in graph}
    frontier = Frontier(graph, dependents)
    good: set[str] = set()
    bad: set[str] = set()
    ready, blocked = set(frontier.first), set[str]()
    while True:
        assert ready == {p for p in graph if set(graph[p]) <= good} - good - bad
        assert blocked == {p for p in graph if _rests_on(graph, p, bad)}
        if not ready:
            break
        phase = data.draw(st.sampled_from(sorted(ready)))
        goes_on = data.draw(st.booleans())
        ready.discard(phase)
        (good if goes_on else bad).add(phase)
        more, never = frontier.settle(phase, goes_on=goes_on)
        assert not ready & set(more)
        assert not blocked & set(never)
        ready.update(more)
        blocked.update(never)

    assert good | bad | blocked == graph.keys()


def _rests_on(graph: Graph, phase: str, bad: set[str]) -> bool:
    return any(name in bad or _rests_on(graph, name, bad) for name in graph[phase])
