"""Signals are heard whatever the main thread is in."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_sandbox.signals import cancel_on_signals, cancelled_by_signals

ROOT = Path(__file__).resolve().parents[1]

WAITS = """
import os, signal, sys, threading
from sage_sandbox.signals import cancelled_by_signals

reading, writing = os.pipe()
threading.Thread(target=threading.Event().wait, daemon=True).start()  # takes what the main thread does not
with cancelled_by_signals(lambda: os.write(writing, b"x")):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("waits", flush=True)
    os.read(reading, 1)
    print("heard", flush=True)
"""


def asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_signal_that_another_thread_takes_is_heard_while_the_main_thread_waits() -> None:
    """The handler alone would not do: it runs in the main thread, once that is back from its system call."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", WAITS],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        while not asleep(process.pid):
            pass
        process.terminate()
        try:
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()

    assert (out, process.returncode) == ("heard\n", 0)


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    yield
    assert before == [signal.getsignal(number) for number in numbers]
    assert signal.set_wakeup_fd(wakeup) == wakeup


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_descriptor_becomes_readable(number: int) -> None:
    with cancel_on_signals() as fd:
        assert not select.select([fd], [], [], 0)[0]
        os.kill(os.getpid(), number)
        assert select.select([fd], [], [], 20)[0]


@pytest.mark.usefixtures("handlers")
def test_ctrl_c_can_be_left_to_others() -> None:
    with cancel_on_signals(interrupt=False) as fd:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert select.select([fd], [], [], 20)[0]


@pytest.mark.usefixtures("handlers")
def test_what_is_ignored_stays_ignored_and_what_is_handled_by_others_is_not_ours() -> None:
    came: list[str] = []
    others = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: came.append("usr1")),
    }
    try:
        with cancelled_by_signals(lambda: came.append("cancel")):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in others.items():
            signal.signal(number, handler)

    assert came == ["usr1"]


@pytest.mark.usefixtures("handlers")
def test_each_signal_until_the_end_is_passed_on_before_it_is_over() -> None:
    came: list[str] = []
    with cancelled_by_signals(lambda: came.append("cancel")):
        signal.raise_signal(signal.SIGTERM)

    assert came == ["cancel"]
