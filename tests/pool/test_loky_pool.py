"""What only processes can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pool_calls
import psutil
import pytest

import sage_sandbox
from sage_sandbox.errors import WorkerLost
from sage_sandbox.policy import SECRET_NAMES
from sage_sandbox.pool import loky_pool
from sage_sandbox.pool.loky_pool import LokyPool
from sage_sandbox.pool.surroundings import safe_path, spawning, withhold

ROOT = Path(sage_sandbox.__file__).parents[1]
TESTS = Path(pool_calls.__file__).parent


@pytest.fixture
def pool() -> Iterator[LokyPool]:
    pool = LokyPool()
    yield pool
    pool.close()


def test_each_slot_is_a_process_of_its_own(pool: LokyPool) -> None:
    pids = {pool.slot(index).submit(pool_calls.pid).result(20) for index in (0, 1, 0)}

    assert len(pids | {os.getpid()}) == 3


def test_a_sigkilled_worker_loses_its_own_slots_calls_only(pool: LokyPool, tmp_path: Path) -> None:
    fifos = [tmp_path / "one", tmp_path / "other"]
    victim = pool.slot(0).submit(pool_calls.pid).result(20)
    for fifo in fifos:
        os.mkfifo(fifo)
    blocked, spared = (pool.slot(n).submit(pool_calls.wait_for_end_of, str(fifo)) for n, fifo in enumerate(fifos))
    with fifos[0].open("w"), fifos[1].open("w"):
        psutil.Process(victim).kill()

        with pytest.raises(WorkerLost, match="died"):
            blocked.result(20)
    assert spared.result(20) == ""
    assert pool.slot(0).submit(pool_calls.pid).result(20) != victim


def test_close_leaves_no_worker() -> None:
    pool = LokyPool()
    pids = [pool.slot(index).submit(pool_calls.pid).result(20) for index in (0, 1)]
    pool.close()

    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_close_leaves_no_worker_where_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = LokyPool()
    pids = [pool.slot(index).submit(pool_calls.pid).result(20) for index in (0, 1)]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.close()

    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_see_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("HARMLESS", "yes")
    pool = LokyPool()
    seen = pool.slot(0).submit(pool_calls.environ).result(20)
    pool.close()

    assert seen["HARMLESS"] == "yes"
    assert not seen.keys() & set(SECRET_NAMES)
    assert seen["PYTHONSAFEPATH"] == "1"
    assert all(os.environ[name] == "hush" for name in SECRET_NAMES)


def test_a_starting_worker_does_not_hear_the_terminals_ctrl_c(pool: LokyPool) -> None:
    assert pool.slot(0).submit(pool_calls.sigint_is_blocked).result(20)
    assert not pool_calls.sigint_is_blocked()


def test_an_argument_that_cannot_cross_fails_its_own_call(pool: LokyPool) -> None:
    with pytest.raises(Exception, match="pickle"):
        pool.slot(0).submit(pool_calls.add, threading.Lock(), 1).result(20)

    assert pool.slot(0).submit(pool_calls.add, 1, 1).result(20) == 2


def test_a_process_that_cannot_be_started_is_worker_lost(pool: LokyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_args: object, **_kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(loky_pool, "ProcessPoolExecutor", no_memory)

    with pytest.raises(WorkerLost, match="Cannot allocate memory"):
        LokyPool().slot(3).submit(pool_calls.pid)


HOSTILE = ("loky/__init__.py", "json.py", "pickle.py", "multiprocessing/__init__.py", "cloudpickle/__init__.py")

RAW = """
import os
from loky.process_executor import ProcessPoolExecutor
if __name__ == "__main__":
    try:
        ProcessPoolExecutor(1).submit(os.getpid).result(20)
    except Exception:
        pass
"""
OURS = """
import sys
import pool_calls
from sage_sandbox.pool.loky_pool import LokyPool
if __name__ == "__main__":
    sys.path.insert(0, "")
    pool = LokyPool()
    print(pool.slot(0).submit(pool_calls.add, 20, 22).result(20))
    print(sys.path[0] == "")
    pool.close()
"""


def _run_beside_hostile_modules(tmp_path: Path, script: str) -> tuple[str, list[str]]:
    """Run a script in a folder whose modules write down that they were executed: its output, and who was."""
    project, witness = tmp_path / "project", tmp_path / "witness"
    witness.mkdir()
    for name in HOSTILE:
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(witness / name.replace('/', '-'))!r}, 'w').close()\nraise ImportError('hostile')\n")
    (tmp_path / "script.py").write_text(script)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    command = [sys.executable, "-P", str(tmp_path / "script.py")]
    ran = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=60, check=False)
    return ran.stdout, sorted(path.name for path in witness.iterdir())


def test_raw_loky_executes_modules_of_the_working_directory(tmp_path: Path) -> None:
    _, executed = _run_beside_hostile_modules(tmp_path, RAW)

    assert executed


def test_no_process_of_ours_executes_modules_of_the_working_directory(tmp_path: Path) -> None:
    printed, executed = _run_beside_hostile_modules(tmp_path, OURS)

    assert executed == []
    assert printed.split() == ["42", "True"]


def test_safe_path_drops_the_working_directory_however_it_is_written(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)

    assert safe_path(["", str(tmp_path), str(link), "/usr/lib"], str(tmp_path)) == ["/usr/lib"]


def test_safe_path_keeps_the_folder_our_own_code_comes_from() -> None:
    assert safe_path([str(ROOT), "/x"], str(ROOT)) == [str(ROOT), "/x"]


def test_spawning_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("SAGE_STATE_KEY", "hush")
    path = list(sys.path)
    with spawning():
        assert "SAGE_STATE_KEY" not in os.environ
        assert os.environ["PYTHONSAFEPATH"] == "1"
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert os.environ["PYTHONSAFEPATH"] == ""
    assert os.environ["SAGE_STATE_KEY"] == "hush"
    assert sys.path == path
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("given", [None, "", "error", "default::DeprecationWarning"])
def test_spawning_keeps_the_users_warnings_but_one(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONWARNINGS", given)
    with spawning():
        inside = os.environ["PYTHONWARNINGS"]

    assert inside == ",".join(filter(None, (given, "ignore:resource_tracker:UserWarning")))
    assert os.environ.get("PYTHONWARNINGS") == given


KILLED = """
import os, signal
import pool_calls
from sage_sandbox.pool.loky_pool import LokyPool
if __name__ == "__main__":
    worker = LokyPool().slot(0).submit(pool_calls.pid).result(20)
    for pid in (worker, os.getpid()):
        os.kill(pid, signal.SIGKILL)
"""


def test_a_killed_coordinator_leaves_no_warning_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    command = [sys.executable, "-P", str(tmp_path / "script.py")]
    # Returns when the trackers have ended, too: they hold the other end of the pipe.
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert (ran.returncode, ran.stderr) == (-signal.SIGKILL, "")


def test_withhold_takes_the_secrets_out() -> None:
    environ = {"ANTHROPIC_API_KEY": "a", "HOME": "/root"}

    assert withhold(environ) == {"ANTHROPIC_API_KEY": "a"}
    assert environ == {"HOME": "/root"}
