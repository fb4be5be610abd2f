"""A broker in a process of its own, as runs have one, with servers that tests can tell what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_sandbox.broker.client import BrokerClient
from sage_sandbox.brokering import Needs, Tools, needs_of
from sage_sandbox.disk.sockets import bind
from sage_sandbox.events import Notice
from sage_sandbox.sandbox.calls import Answer, Call
from sage_sandbox.toolservers.definition import Server

PUPPET = str(Path(__file__).parent / "puppet_server.py")


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something becomes true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


def puppet(name: str = "puppet", *args: str, **more: Any) -> Server:
    return Server(name, ".mcp.json", sys.executable, (PUPPET, *args), **more)


@dataclass
class Registered:
    """A run that is registered: what it was told, and a client for its operation ``a/b``."""

    tools: Any
    told: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = BrokerClient(self.tools.line.path, self.tools.line.token)

    def call(
        self, tool: str, *, operation: str = "a/b", timeout_s: float = 30, cancel_fd: int = -1, **given: Any
    ) -> Answer:
        call = Call(tool if "/" in tool else f"puppet/{tool}", json.dumps(given).encode())
        return self.client.call(operation, call, timeout_s=timeout_s, cancel_fd=cancel_fd)

    def value(self, tool: str, **given: Any) -> Any:
        answer = self.call(tool, **given)
        assert answer.ok, answer
        return json.loads(answer.value)

    def look(self, server: str = "puppet", *, start: bool = False) -> dict[str, Any]:
        said, body = self.tools.ask({"do": "look", "server": server, "start": start}, 30)
        return {**said, "tools": json.loads(body)}

    @property
    def pid(self) -> int:
        return int(self.tools._process.pid)


@contextlib.contextmanager
def registered(
    project: Path,
    *servers: Server,
    grants: dict[str, tuple[str, ...]] | None = None,
    needs: Needs | None = None,
    run: str = "run-1",
    environ: dict[str, str] | None = None,
    on_notice: Callable[[Notice], None] | None = None,
    kind: type[Tools] = Tools,
    **more: Any,
) -> Iterator[Registered]:
    servers = servers or (puppet(),)
    environ = dict(os.environ) if environ is None else environ
    grants = grants or {"a/b": tuple(f"{server.name}/*" for server in servers)}
    told: list[Notice] = []
    tools = kind.open(
        str(project),
        needs or needs_of(servers, grants, environ),
        run=run,
        feature="f",
        environ=environ,
        tell=on_notice or told.append,
        **more,
    )
    made = Registered(tools, told)
    try:
        yield made
    finally:
        made.client.close()
        tools.close()
        if tools._process is not None:
            tools._process.wait(30)


class ThreadedTools(Tools):
    """The same with the broker in a thread of this process: what it does is measured, and its clock can be set."""

    broker_settings: dict[str, Any] = {}  # noqa: RUF012 - set by the test

    def _spawn(self) -> None:
        from sage_sandbox.broker.server import Broker
        from sage_sandbox.broker.sessions import connected
        from sage_sandbox.broker_process import End, open_record

        listener = bind(self._folder, self._name)
        settings = {"connect": connected, "make_record": open_record, **self.broker_settings}
        end = End(Path(self.line.path), listener)
        self.broker = Broker(listener, may_end=end, **settings)
        self.serving = threading.Thread(target=lambda: asyncio.run(self.broker.serve()), daemon=True)
        self.serving.start()


@contextlib.contextmanager
def threaded(
    project: Path, *servers: Server, settings: dict[str, Any] | None = None, **more: Any
) -> Iterator[Registered]:
    """As `registered`, in this process."""
    kind = type("Threaded", (ThreadedTools,), {"broker_settings": settings or {}})
    with registered(project, *servers, kind=kind, **more) as made:
        yield made
    if hasattr(made.tools, "serving"):
        made.tools.serving.join(30)
        assert not made.tools.serving.is_alive()
