"""A tool server that is a program: it ends with its session, whatever happens to whoever ends it."""

from __future__ import annotations

import asyncio
import os
import select
import sys

import pytest

from sage_sandbox.broker.stdio import Program, program_transport

DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(file=sys.stderr, flush=True)
time.sleep(600)
"""


def test_a_program_that_ends_for_nobody_is_killed_though_its_ending_is_cancelled(tmp_path, monkeypatch):
    start = asyncio.create_subprocess_exec

    async def hold(started):
        async def noted(*args, **kwargs):
            process = await start(*args, **kwargs)
            started.set_result(os.pidfd_open(process.pid))
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
        async with program_transport((sys.executable, "-c", DEAF), {}, str(tmp_path), Program()):
            await asyncio.Event().wait()

    async def cancelled_twice():
        started = asyncio.get_running_loop().create_future()
        holding = asyncio.create_task(hold(started))
        pidfd = await started
        for _ in range(2):
            holding.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await holding
        return pidfd

    pidfd = asyncio.run(cancelled_twice())

    assert [pidfd] == select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
