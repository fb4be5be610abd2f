"""A tool server behind an address that does as it is told: standard library only, the older handshake, JSON answers."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOOLS = ("echo", "headers", "busy", "busy-for-long", "broken", "forgot", "no", "huge", "brackets", "packed", "events",
         "huge-event", "hang-up", "moved", "html", "once-busy")  # fmt: skip


class HttpPuppet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []
        self.once: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mcp"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpPuppet

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        pass

    def do_GET(self) -> None:
        self.reply(405)

    do_DELETE = do_GET  # noqa: N815 - its name in the base class

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        method, number, params = message["method"], message.get("id"), message.get("params") or {}
        if number is None:
            self.reply(202)
        elif method == "initialize":
            info = {"name": "http-puppet", "version": "1"}
            self.answer(number, {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                                 "serverInfo": info}, {"mcp-session-id": "s-1"})  # fmt: skip
        elif method == "tools/list":
            hints = {"once-busy": {"readOnlyHint": True}}
            tools = [{"name": n, "inputSchema": {"type": "object"}, "annotations": hints.get(n)} for n in TOOLS]
            self.answer(number, {"tools": [{k: v for k, v in t.items() if v is not None} for t in tools]})
        elif method == "tools/call":
            self.server.calls.append(params["name"])
            getattr(self, "act_" + params["name"].replace("-", "_"))(number, params.get("arguments") or {})
        else:
            self.say({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no such method"}})

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def say(self, message: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(200, json.dumps(message).encode(), {"content-type": "application/json", **(headers or {})})

    def answer(self, number: Any, result: Any, headers: dict[str, str] | None = None) -> None:
        self.say({"jsonrpc": "2.0", "id": number, "result": result}, headers)

    def act_echo(self, number: Any, given: Any) -> None:
        self.answer(number, {"content": [{"type": "text", "text": str(given.get("text"))}]})

    def act_headers(self, number: Any, given: Any) -> None:
        self.answer(number, {"content": [], "structuredContent": {k.lower(): v for k, v in self.headers.items()}})

    def act_busy(self, number: Any, given: Any) -> None:
        self.reply(503, b"", {"retry-after": "0"})

    def act_once_busy(self, number: Any, given: Any) -> None:
        if "once-busy" in self.server.once:
            self.act_echo(number, {"text": "not busy any more"})
        else:
            self.server.once.add("once-busy")
            self.reply(429, b"", {"retry-after": "1"})

    def act_busy_for_long(self, number: Any, given: Any) -> None:
        self.reply(429, b"", {"retry-after": "3600"})

    def act_broken(self, number: Any, given: Any) -> None:
        self.reply(500, b"<html>", {"content-type": "text/html"})

    def act_forgot(self, number: Any, given: Any) -> None:
        self.reply(404)

    def act_no(self, number: Any, given: Any) -> None:
        self.reply(403)

    def act_huge(self, number: Any, given: Any) -> None:
        self.reply(200, b" " * ((17 << 20) + 10), {"content-type": "application/json"})

    def act_brackets(self, number: Any, given: Any) -> None:
        self.reply(200, b"[" + b"[]," * 300_000 + b"1]", {"content-type": "application/json"})

    def act_packed(self, number: Any, given: Any) -> None:
        body = gzip.compress(b" " * (64 << 20))
        self.reply(200, body, {"content-type": "application/json", "content-encoding": "gzip"})

    def act_events(self, number: Any, given: Any) -> None:
        result = {"content": [{"type": "text", "text": "by event"}]}
        data = json.dumps({"jsonrpc": "2.0", "id": number, "result": result})
        self.reply(200, f"event: message\ndata: {data}\n\n".encode(), {"content-type": "text/event-stream"})

    def act_huge_event(self, number: Any, given: Any) -> None:
        body = b"event: message\ndata: " + b"x" * ((17 << 20) + 10) + b"\n\n"
        self.reply(200, body, {"content-type": "text/event-stream"})

    def act_hang_up(self, number: Any, given: Any) -> None:
        self.close_connection = True
        self.connection.close()

    def act_moved(self, number: Any, given: Any) -> None:
        self.reply(307, b"", {"location": "http://127.0.0.1:9/elsewhere"})

    def act_html(self, number: Any, given: Any) -> None:
        self.reply(200, b"<html>", {"content-type": "text/html"})


@contextlib.contextmanager
def http_puppet() -> Iterator[HttpPuppet]:
    server = HttpPuppet()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
