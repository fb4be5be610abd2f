"""A socket that listens for tool calls as a child's does, and the supervisor's side of it: the test is who calls."""

from __future__ import annotations

import json
import os
import select
import socket
import threading

from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.calling import Desk, ToolCalls
from sage_sandbox.sandbox.calls import Answer, Call
from sage_sandbox.sandbox.inside import tools

PATIENCE_S = 60.0
GRANTED = Policy(tool=("city/*", "time/now"))


def echo(call: Call) -> Answer:
    """Answer with what was asked."""
    return Answer(ok=True, value=json.dumps([call.tool, json.loads(call.arguments)]).encode())


class Line:
    """A listening socket as a child has it, and the calls that come in over it."""

    def __init__(self, path: str, policy: Policy, desk: Desk) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.calls = ToolCalls(policy, desk, expected=True)
        self.calls.listen(os.dup(self.listener.fileno()))
        self.clients: list[socket.socket] = []
        self.over = threading.Event()

    def connect(self) -> socket.socket:
        """A connection that was accepted."""
        client = self.waiting()
        self.calls.accept()
        return client

    def waiting(self) -> socket.socket:
        """One that was not."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_S)
        client.connect(self.path)
        self.clients.append(client)
        return client

    def send(self, data: bytes) -> Answer | None:
        """What is answered to these bytes; None if nothing is."""
        client = self.connect()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return receive(client)

    def call(self, tool: str, arguments: str = "{}") -> Answer | None:
        """A call as the helper sends it."""
        return self.send(frame(tools.CALL, f'{{"tool":{json.dumps(tool)},"arguments":{arguments}}}'.encode()))

    def wait(self) -> None:
        """Until a call has ended."""
        poll = select.poll()
        poll.register(self.calls.wake, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000)

    def serve(self) -> None:
        """Accept whoever comes, in a thread, until it is closed."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self.calls.fileno(), select.POLLIN)
        while not self.over.is_set():
            if poll.poll(20) and not self.over.is_set():
                self.calls.accept()

    def close(self) -> None:
        """Hang up."""
        self.over.set()
        self.calls.close()
        for sock in (self.listener, *self.clients):
            sock.close()


def frame(kind: bytes, body: bytes) -> bytes:
    """As it is sent."""
    return tools.LENGTH.pack(1 + len(body)) + kind + body


def receive(client: socket.socket) -> Answer | None:
    """One answer; None if we were hung up on."""
    data = b""
    try:
        while part := client.recv(1 << 20):
            data += part
    except ConnectionResetError:  # with something of ours unread
        return None
    if not data:
        return None
    body = data[tools.LENGTH.size + 1 :]
    assert tools.LENGTH.pack(1 + len(body)) == data[: tools.LENGTH.size]
    return Answer(ok=True, value=body) if data[4:5] == tools.VALUE else Answer(ok=False, **json.loads(body))
