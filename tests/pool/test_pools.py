"""One suite for everything that fits the seam."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_calls
import pytest

from sage_sandbox.errors import WorkerLost
from sage_sandbox.pool.base import Pool
from sage_sandbox.pool.inline import InlinePool
from sage_sandbox.pool.loky_pool import LokyPool

MakePool = Callable[..., Any]


@pytest.fixture(params=[InlinePool, LokyPool], ids=["inline", "loky"])
def make_pool(request: pytest.FixtureRequest) -> Iterator[MakePool]:
    made: list[Pool] = []

    def make(*args: Any) -> Pool:
        made.append(request.param(*args))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Opening it to write waits until a call that reads it has begun."""
    return _fifo(tmp_path / "fifo")


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_a_call_gives_its_result(make_pool: MakePool) -> None:
    assert make_pool().slot(0).submit(pool_calls.add, 1, 2).result(20) == 3


def test_what_a_call_raises_is_its_futures(make_pool: MakePool) -> None:
    slot = make_pool().slot(0)

    with pytest.raises(ValueError, match="no luck"):
        slot.submit(pool_calls.fail, "no luck").result(20)

    assert slot.submit(pool_calls.add, 1, 1).result(20) == 2


def test_even_an_exit_is_its_futures(make_pool: MakePool) -> None:
    with pytest.raises(SystemExit):
        make_pool().slot(0).submit(pool_calls.leave_the_process).result(20)


def test_calls_run_in_order(make_pool: MakePool, tmp_path: Path) -> None:
    slot = make_pool().slot(0)
    futures = [slot.submit(pool_calls.append, str(tmp_path / "log"), f"{number} ") for number in range(5)]
    for future in futures:
        future.result(20)

    assert (tmp_path / "log").read_text() == "0 1 2 3 4 "


def test_the_initializer_runs_first_with_the_slots_number(make_pool: MakePool) -> None:
    pool = make_pool(pool_calls.initialize, ("token",))

    assert pool.slot(1).submit(pool_calls.started).result(20) == (1, "token", 1)


def test_a_slot_is_the_same_slot_each_time(make_pool: MakePool) -> None:
    pool = make_pool()

    assert pool.slot(2) is pool.slot(2)
    assert pool.slot(2).index == 2


def test_a_killed_slot_loses_what_it_held_and_no_other_slot_does(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    fifos = [_fifo(tmp_path / name) for name in ("one", "other")]
    running, other = (pool.slot(n).submit(pool_calls.wait_for_end_of, str(fifo)) for n, fifo in enumerate(fifos))
    waiting = pool.slot(0).submit(pool_calls.add, 1, 1)
    with fifos[0].open("w"), fifos[1].open("w"):
        pool.slot(0).kill()

        with pytest.raises(WorkerLost) as lost:
            running.result(20)
        with pytest.raises(WorkerLost):
            waiting.result(20)
    assert lost.value.slot == 0
    assert other.result(20) == ""


def test_a_slot_starts_again_after_it_was_killed(make_pool: MakePool) -> None:
    slot = make_pool(pool_calls.initialize).slot(0)
    slot.submit(pool_calls.add, 1, 1).result(20)
    slot.kill()

    assert slot.submit(pool_calls.started).result(20) == (0, 1)


def test_killing_what_never_started_is_nothing(make_pool: MakePool) -> None:
    slot = make_pool().slot(0)
    slot.kill()

    assert slot.submit(pool_calls.add, 2, 2).result(20) == 4


def test_close_without_kill_lets_calls_end(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    pool.slot(0).submit(pool_calls.append, str(tmp_path / "log"), "done")
    pool.close(kill=False)

    assert (tmp_path / "log").read_text() == "done"


def test_close_with_kill_does_not_wait_for_a_call(make_pool: MakePool, fifo: Path) -> None:
    pool = make_pool()
    future = pool.slot(0).submit(pool_calls.wait_for_end_of, str(fifo))
    with fifo.open("w"):
        pool.close(kill=True)

        with pytest.raises(WorkerLost):
            future.result(20)
