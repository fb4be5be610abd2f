"""The dispatcher with real slots: threads where that is enough, processes where it is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_supervisor
import psutil
import pytest
from fake_supervisor import inline_supervisor, task

from sage_sandbox.dispatch import dispatcher as module
from sage_sandbox.dispatch.dispatcher import GRACE_S, LEAVE_S, Dispatcher, inline_pool, loky_pool
from sage_sandbox.dispatch.reports import Finished, Lost, News, Returned, Started, Withheld
from sage_sandbox.errors import SandboxUnavailable, WorkerLost
from sage_sandbox.events import Notice
from sage_sandbox.operations import channel
from sage_sandbox.outcome import rejected
from sage_sandbox.pool.base import Initializer
from sage_sandbox.pool.inline import InlinePool, InlineSlot

Make = Callable[..., Dispatcher]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Dispatcher] = []

    def make(pool: Any = inline_pool, **options: Any) -> Dispatcher:
        defaults: dict[str, Any] = {"parallel": 2, "make_supervisor": inline_supervisor, "make_pool": pool}
        made.append(Dispatcher("/", **defaults | options))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()


@pytest.fixture(params=[inline_pool, loky_pool], ids=["inline", "loky"])
def pool(request: pytest.FixtureRequest) -> Any:
    return request.param


def hear(dispatcher: Dispatcher, until: Callable[[list[News]], bool]) -> list[News]:
    """What happens until something has happened."""
    heard: list[News] = []
    deadline = time.monotonic() + 30
    while not until(heard):
        assert time.monotonic() < deadline, heard
        heard += dispatcher.wait(1.0)
    return heard


def ready(dispatcher: Dispatcher, count: int = 1) -> Dispatcher:
    """Start slots and wait until they are prepared."""
    dispatcher.grow(count)
    hear(dispatcher, lambda _: sum(link.state == "ready" for link in dispatcher._links) == count)
    return dispatcher


def finished(count: int) -> Callable[[list[News]], bool]:
    return lambda heard: sum(isinstance(news, Finished) for news in heard) >= count


def test_nothing_is_sent_before_a_slot_is_prepared(make: Make, pool: Any) -> None:
    dispatcher = make(pool)
    assert dispatcher.room(1) == 0
    dispatcher.grow(1)
    assert dispatcher.room(1) == 0
    ready(dispatcher)

    assert dispatcher.room(1) == 1


def test_a_task_is_started_and_finished(make: Make, pool: Any) -> None:
    dispatcher = ready(make(pool))
    dispatcher.send((task(1, "ok"),))
    assert dispatcher.busy == 1
    heard = hear(dispatcher, finished(1))

    assert heard == [Started(1), Finished(1, fake_supervisor.fulfilled())]
    assert dispatcher.busy == 0


def test_what_a_slot_leaves_holds_no_secret(make: Make, pool: Any) -> None:
    dispatcher = ready(make(pool, secrets=("hunter2hunter2",)))
    dispatcher.send((task(1, "fail no hunter2hunter2"),))
    heard = hear(dispatcher, finished(1))

    assert heard[-1] == Finished(1, replace(rejected("error", "no [secret:known]"), scrubbed=1))


def test_slots_are_started_for_what_is_wanted_and_no_more(make: Make) -> None:
    dispatcher = make(parallel=3)
    dispatcher.grow(2)
    assert [link.state for link in dispatcher._links] == ["starting", "starting", "absent"]
    dispatcher.grow(9)

    assert [link.state for link in dispatcher._links] == ["starting"] * 3


def test_a_running_task_is_cancelled(make: Make, pool: Any) -> None:
    dispatcher = ready(make(pool))
    dispatcher.send((task(1, "block"), task(2, "ok")))
    hear(dispatcher, lambda heard: Started(1) in heard)
    dispatcher.cancel([1, 2])
    heard = hear(dispatcher, lambda heard: len(heard) >= 2)

    assert set(map(type, heard)) == {Finished, Returned}
    assert Returned(2) in heard


def test_a_killed_worker_loses_its_own_running_task_only(make: Make) -> None:
    dispatcher = ready(make(loky_pool), 2)
    dispatcher.send((task(1, "block"), task(2, "ok")))
    dispatcher.send((task(3, "block"),))
    hear(dispatcher, lambda heard: {Started(1), Started(3)} <= set(heard))
    psutil.Process(dispatcher._links[0].pid).kill()
    heard = hear(dispatcher, lambda heard: Returned(2) in heard)

    assert Lost(1) in heard
    assert any(isinstance(news, Notice) and "only its operation is lost" in news.text for news in heard)
    assert dispatcher.busy == 1
    ready(dispatcher, 2)
    dispatcher.send((task(4, "ok"),))
    assert [n.ticket for n in hear(dispatcher, finished(1)) if isinstance(n, Finished)] == [4]


def test_outcomes_of_a_worker_that_died_later_are_not_lost(make: Make) -> None:
    dispatcher = ready(make(loky_pool))
    dispatcher.send((task(1, "ok"), task(2, "die"), task(3, "ok")))
    heard = hear(dispatcher, lambda heard: Returned(3) in heard)

    assert Finished(1, fake_supervisor.fulfilled()) in heard
    assert Lost(2) in heard


def test_a_worker_that_does_not_obey_is_killed(make: Make, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    dispatcher = ready(make(pool))
    dispatcher.send((task(1, "deaf"), task(2, "ok")))
    hear(dispatcher, lambda heard: Started(1) in heard)
    pid = dispatcher._links[0].pid
    dispatcher.cancel([1])
    heard = hear(dispatcher, lambda heard: Lost(1) in heard)

    assert any(isinstance(news, Notice) and "did not end its operation" in news.text for news in heard)
    assert ready(dispatcher)._links[0].pid != pid or pool is inline_pool


def test_work_behind_something_long_goes_to_a_slot_that_is_idle(make: Make, pool: Any) -> None:
    dispatcher = ready(make(pool), 2)
    dispatcher.send((task(1, "block"), task(2, "ok"), task(3, "ok")))
    hear(dispatcher, lambda heard: {Started(1), Returned(2), Returned(3)} <= set(heard))

    assert dispatcher.room(2) == 1
    dispatcher.send((task(4, "ok"),))
    hear(dispatcher, finished(1))


def test_work_is_not_moved_while_no_slot_is_idle(make: Make) -> None:
    dispatcher = ready(make(), 1)
    dispatcher.send((task(1, "block"), task(2, "ok")))
    hear(dispatcher, lambda heard: Started(1) in heard)

    assert dispatcher._patience(None) is None
    dispatcher.cancel([1])
    assert Finished(2, fake_supervisor.fulfilled()) in hear(dispatcher, finished(2))


def test_short_work_is_sent_in_chunks_two_in_flight(make: Make) -> None:
    dispatcher = ready(make(), 1)
    dispatcher.send((task(1, "ok"),))
    hear(dispatcher, finished(1))
    dispatcher._pace._mean_s = 0.0055
    assert dispatcher.room(100) == 1
    dispatcher.send((task(2, "block"),))
    assert dispatcher.room(100) == 5
    dispatcher.send(tuple(task(n, "ok") for n in range(3, 8)))

    assert dispatcher.room(100) == 0
    dispatcher.cancel(range(2, 8))


def test_an_argument_that_cannot_cross_rejects_its_own_tasks(make: Make) -> None:
    dispatcher = ready(make(loky_pool))
    dispatcher.send((task(1, "ok", env=(("A", lambda: None), ("lock", __import__("threading").Lock()))),))
    heard = hear(dispatcher, finished(1))

    assert isinstance(heard[-1], Finished)
    assert "could not be handed to a worker" in heard[-1].outcome.error


def test_a_withheld_sandbox_is_reported(make: Make, pool: Any) -> None:
    dispatcher = make(pool, make_supervisor=fake_supervisor.unprepared_supervisor)
    dispatcher.grow(1)
    heard = hear(dispatcher, bool)

    assert isinstance(heard[0], Withheld)
    assert heard[0].error.feature == "userns"


def test_workers_that_cannot_start_leave_one_thread(make: Make) -> None:
    supervisors = iter([fake_supervisor.dying_supervisor])

    def pool_that_dies(initializer: Initializer, initargs: tuple[Any, ...]) -> Any:
        return loky_pool(initializer, (*initargs[:-1], next(supervisors)))

    dispatcher = make(pool_that_dies)
    heard: list[News] = []
    while not any(link.state == "ready" for link in dispatcher._links):
        dispatcher.grow(2)
        heard += dispatcher.wait(1.0)
    dispatcher.send((task(1, "pid"),))
    heard += hear(dispatcher, finished(1))

    texts = [news.text for news in heard if isinstance(news, Notice)]
    assert texts[-1] == "worker processes cannot be had; running one operation at a time"
    assert isinstance(heard[-1], Finished)
    assert heard[-1].outcome.value() == os.getpid()
    assert len(dispatcher._links) == 1


def test_a_pool_that_cannot_be_made_leaves_one_thread(make: Make) -> None:
    def no_pool(*_args: Any) -> Any:
        raise ImportError("no loky")

    dispatcher = ready(make(no_pool))

    assert [link.state for link in dispatcher._links] == ["ready"]


def test_when_not_even_a_thread_can_be_had_the_sandbox_is_unavailable(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> Any:
        raise WorkerLost("no threads")

    monkeypatch.setattr(InlineSlot, "submit", refuse)
    dispatcher = make(parallel=1)

    for _ in range(2):
        dispatcher.grow(1)
    with pytest.raises(SandboxUnavailable, match="no worker"):
        dispatcher.grow(1)


def test_a_send_that_fails_gives_the_tasks_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = ready(make())

    def refuse(*_args: Any) -> Any:
        raise WorkerLost("gone")

    monkeypatch.setattr(dispatcher._links[0].slot, "submit", refuse)
    dispatcher.send((task(1, "ok"),))

    assert Returned(1) in dispatcher.wait(0)


@pytest.mark.parametrize(
    "data",
    [b"", b"short", b"x" * channel.HELLO_BYTES, channel.hello(b"w" * channel.TOKEN_BYTES, 0)],
    ids=["nothing", "too little", "no token", "another token"],
)
def test_a_stranger_on_the_socket_is_hung_up_on(make: Make, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.05)
    dispatcher = make()
    dispatcher._all_links()[0].state = "starting"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(dispatcher._listener.getsockname())
        stranger.sendall(data)
        dispatcher.wait(5)
        stranger.settimeout(5)

        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert dispatcher._links[0].connection is None
    dispatcher._links[0].state = "absent"


def test_the_run_folder_is_private_and_goes_away(make: Make) -> None:
    dispatcher = make()
    folder = dispatcher._folder

    assert folder.stat().st_mode & 0o777 == 0o700
    dispatcher.close()
    dispatcher.close()
    assert not folder.exists()


def test_the_run_folder_lies_in_the_runtime_folder_if_that_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = tempfile.mkdtemp(dir="/tmp")
    for runtime, usable in [
        (here, True),
        (str(tmp_path / "missing"), False),
        ("/" + "x" * 200, False),
    ]:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder, listener = module._meeting_place()
        listener.close()
        shutil.rmtree(folder)

        assert (str(folder.parent) == runtime) is usable
    Path(here).rmdir()


def test_without_any_folder_the_sandbox_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: Any) -> str:
        raise PermissionError("read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)

    with pytest.raises(SandboxUnavailable, match="socket"):
        Dispatcher("/")


def test_where_no_socket_can_be_made_the_sandbox_is_unavailable_and_no_folder_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(28, "No space left on device", address)

    monkeypatch.setattr(socket, "socket", Full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    with pytest.raises(SandboxUnavailable, match="socket"):
        Dispatcher("/")
    assert [] == list(tmp_path.glob("sage-*"))


def test_a_worker_that_does_not_obey_is_not_waited_for_longer_than_a_cancel_may_take() -> None:
    """Two seconds. benchmarks/bench_cancel.py measures workers that obey."""
    assert GRACE_S + LEAVE_S < 2


@pytest.mark.parametrize("code", ["block", "deaf", "ok"])
def test_close_leaves_no_process(make: Make, code: str) -> None:
    dispatcher = ready(make(loky_pool), 2)
    pids = [link.pid for link in dispatcher._links]
    dispatcher.send((task(1, code),))
    hear(dispatcher, lambda heard: Started(1) in heard)
    dispatcher.close()

    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_close_while_workers_start_leaves_no_process(make: Make) -> None:
    before = set(psutil.Process().children(recursive=True))
    dispatcher = make(loky_pool)
    dispatcher.grow(2)
    workers = {
        child for child in psutil.Process().children() if "popen_loky_posix" in " ".join(child.cmdline())
    } - before
    dispatcher.close()

    assert not any(worker.is_running() for worker in workers)


def test_workers_are_light_and_know_no_secret(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_STATE_KEY", "hush")
    dispatcher = ready(make(loky_pool))
    dispatcher.send((task(1, "modules"), task(2, "environ")))
    modules, environ = [n.outcome.value() for n in hear(dispatcher, finished(2)) if isinstance(n, Finished)]

    assert not {"pydantic", "yaml", "rich", "click", "mcp"} & set(modules)
    assert "SAGE_STATE_KEY" not in environ


def test_waking_a_closed_dispatcher_is_nothing(make: Make) -> None:
    dispatcher = make()
    dispatcher.close()
    dispatcher.wake()


def test_an_inline_pool_is_a_pool_of_threads() -> None:
    assert isinstance(inline_pool(lambda _index: None, ()), InlinePool)
