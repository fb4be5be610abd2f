from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.dispatch.alarms import Alarms
from sage_sandbox.dispatch.memory import Memory, MemoryGate, read_memory
from sage_sandbox.dispatch.pace import CHUNK_MAX, Pace


def _pace(*costs: float) -> Pace:
    pace = Pace()
    for cost in costs:
        pace.note(cost)
    return pace


def test_nothing_is_chunked_before_it_is_measured() -> None:
    assert not Pace().short
    assert Pace().chunk(1000, 2) == 1


def test_long_operations_go_one_at_a_time() -> None:
    assert _pace(0.05).chunk(1000, 2) == 1
    assert not _pace(0.001, *[0.5] * 3).short


@pytest.mark.parametrize(("cost", "chunk"), [(0.019, 1), (0.010, 3), (0.003, 10), (0.0001, CHUNK_MAX)])
def test_a_chunk_is_about_thirty_milliseconds_of_work(cost: float, chunk: int) -> None:
    assert _pace(cost).chunk(1000, 2) == chunk


@given(st.integers(1, 100), st.integers(1, 8), st.floats(0, 0.1))
def test_slots_share_what_is_pending(pending: int, slots: int, cost: float) -> None:
    chunk = _pace(cost).chunk(pending, slots)

    assert 1 <= chunk <= max(1, -(-pending // slots))


def test_alarms_ring_in_the_order_of_their_times() -> None:
    now, rung = [0.0], []
    alarms = Alarms(lambda: now[0])
    assert alarms.wait_s() is None
    for delay in (3.0, 1.0, 2.0):
        alarms.set(delay, lambda delay=delay: rung.append(delay))  # type: ignore[misc]
    assert alarms.wait_s() == 1.0
    now[0] = 2.5
    assert alarms.wait_s() == 0.0
    alarms.ring()

    assert rung == [1.0, 2.0]
    assert alarms.wait_s() == 0.5


def test_memory_is_read_from_the_kernel() -> None:
    memory = read_memory()

    assert 0 < memory.available <= memory.total


def _gate(*available: int) -> MemoryGate:
    readings = iter(available)
    times = iter(range(100))
    return MemoryGate(lambda: Memory(1000, next(readings)), lambda: next(times))


def test_an_operation_waits_below_a_tenth_of_the_memory() -> None:
    gate = _gate(99, 99)

    assert not gate.allows(10, running=1)
    assert "99 B available" in gate.said


def test_an_operation_waits_below_its_own_limit() -> None:
    assert not _gate(500).allows(501, running=1)
    assert _gate(500).allows(500, running=1)


def test_one_alone_always_starts() -> None:
    gate = _gate(0)

    assert gate.allows(10, running=0)
    assert gate.said


def test_a_reading_is_believed_for_a_moment() -> None:
    readings = iter([1000])
    gate = MemoryGate(lambda: Memory(1000, next(readings)), lambda: 0.0)

    assert all(gate.allows(10, running=1) for _ in range(3))
