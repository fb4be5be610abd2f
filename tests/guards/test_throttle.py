from __future__ import annotations

import asyncio

import pytest

from sage_sandbox.guards.throttle import Throttle


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def held(throttle, log, name, gate):
    async def hold():
        async with throttle.turn():
            log.append(name)
            await gate.wait()

    return asyncio.ensure_future(hold())


def test_four_at_once_and_the_rest_waits_in_order():
    async def story():
        log: list[int] = []
        throttle, gate = Throttle(), asyncio.Event()
        tasks = [held(throttle, log, number, gate) for number in range(7)]
        await settle()
        assert [0, 1, 2, 3] == log
        assert throttle.waiting == 3
        gate.set()
        await asyncio.gather(*tasks)
        return throttle, log

    throttle, log = asyncio.run(story())

    assert list(range(7)) == log
    assert throttle.waiting == 0


def test_who_gives_up_waiting_frees_no_place_that_is_held():
    async def story():
        log: list[str] = []
        throttle, gate = Throttle(1), asyncio.Event()
        first, second = held(throttle, log, "first", gate), held(throttle, log, "second", gate)
        await settle()
        second.cancel()
        third = held(throttle, log, "third", gate)
        await settle()
        assert log == ["first"]
        assert throttle.waiting == 1
        gate.set()
        await asyncio.gather(first, third)
        return log

    assert asyncio.run(story()) == ["first", "third"]


def test_a_rate_puts_even_distances_between_beginnings():
    time = Time()

    async def story():
        throttle = Throttle(1, per_s=2, clock=time, sleep=time.sleep)
        began = []
        for _ in range(3):
            async with throttle.turn():
                began.append(time.now)
        return began

    assert asyncio.run(story()) == [0.0, 0.5, 1.0]


def test_a_rate_does_not_make_anybody_wait_who_comes_late_enough():
    time = Time()

    async def story():
        throttle = Throttle(per_s=2, clock=time, sleep=time.sleep)
        for _ in range(3):
            async with throttle.turn():
                time.now += 1

    asyncio.run(story())

    assert time.slept == []


@pytest.mark.parametrize("made", [{"at_once": 0}, {"per_s": 0}, {"per_s": -1}])
def test_one_that_lets_nothing_through_is_refused(made):
    with pytest.raises(ValueError, match="nothing"):
        Throttle(**made)
