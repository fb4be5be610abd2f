"""A model provider on loopback that speaks both APIs and does as its prompt says: standard library only.

A prompt's first word is the act (see `Handler`), the rest is for it; every request is kept as it came.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-puppet-0123456789abcdef"
MODEL = "anthropic/puppet"


@dataclass
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"])


class ModelPuppet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Asked] = []
        self.stalled = threading.Event()
        self.hung_up = threading.Event()
        self.by_default = ""
        self.is_down = False
        self.model = "puppet-2026"
        self.counts: Any = {"input": 100, "output": 20, "read": 30, "write": 5}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environ(self) -> dict[str, str]:
        """What makes it the provider anthropic and the provider openai."""
        return {
            "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": self.url,
            "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{self.url}/v1",
        }  # fmt: skip

    @property
    def prompts(self) -> list[str]:
        return [asked.prompt for asked in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one write: in two, the second waits for an acknowledgement, 40 ms
    server: ModelPuppet

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.asked.append(asked)
        act, _, rest = asked.prompt.partition(" ")
        if self.server.is_down:
            act = "broken"
        getattr(self, f"act_{act}", self.act_by_default)(rest)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer(self, text: Any, stop: str = "", **more: Any) -> None:
        make = self.message if self.path == "/v1/messages" else self.completion
        self.reply(200, json.dumps({**make(text, stop), **more}).encode())

    def message(self, text: Any, stop: str) -> dict[str, Any]:
        counts = self.server.counts
        usage = counts and {
            "input_tokens": counts["input"], "output_tokens": counts["output"],
            "cache_read_input_tokens": counts["read"], "cache_creation_input_tokens": counts["write"],
        }  # fmt: skip
        stop = {"length": "max_tokens", "no": "refusal"}.get(stop, "end_turn")
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": self.server.model, "stop_reason": stop,
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}], "usage": usage,
        }  # fmt: skip

    def completion(self, text: Any, stop: str) -> dict[str, Any]:
        counts = self.server.counts
        usage = counts and {
            "prompt_tokens": counts["input"] + counts["read"] + counts["write"], "completion_tokens": counts["output"],
            "prompt_tokens_details": {"cached_tokens": counts["read"], "cache_write_tokens": counts["write"]},
        }  # fmt: skip
        stop = {"length": "length", "no": "content_filter"}.get(stop, "stop")
        message = {"role": "assistant", "content": text}
        return {
            "id": "c-1", "object": "chat.completion", "created": 1, "model": self.server.model, "usage": usage,
            "choices": [{"index": 0, "finish_reason": stop, "message": message}],
        }  # fmt: skip

    def act_by_default(self, _: str) -> None:
        self.answer(self.server.by_default)

    def act_say(self, rest: str) -> None:
        self.answer(rest)

    def act_key(self, _: str) -> None:
        self.answer(f"your key is {self.server.environ['OPENAI_API_KEY']}")

    def act_wrong(self, _: str) -> None:
        error = {"type": "authentication_error", "message": f"invalid key {KEY}"}
        self.reply(401, json.dumps({"type": "error", "error": error}).encode())

    def act_busy(self, seconds: str) -> None:
        """Too many requests, until this prompt has come twice."""
        if len([prompt for prompt in self.server.prompts if prompt.startswith("busy")]) > 1:
            return self.answer("not busy any more")
        return self.reply(429, b'{"error": {"message": "slow down"}}', {"retry-after": seconds})

    def act_overloaded(self, _: str) -> None:
        self.reply(529, b'{"type": "error", "error": {"type": "overloaded_error", "message": "too much"}}')

    def act_broken(self, _: str) -> None:
        self.reply(500, b"<html>", {"content-type": "text/html"})

    def act_html(self, _: str) -> None:
        self.reply(200, b"<html>", {"content-type": "text/html"})

    def act_list(self, _: str) -> None:
        self.reply(200, b"[1, 2]")

    def act_empty(self, _: str) -> None:
        self.reply(200, b"{}")

    def act_odd(self, _: str) -> None:
        self.answer({"a": "mapping"})

    def act_huge(self, _: str) -> None:
        self.reply(200, b" " * ((17 << 20) + 10))

    def act_flood(self, _: str) -> None:
        """As huge, as a stream of events."""
        self.reply(200, b" " * ((17 << 20) + 10), {"content-type": "text/event-stream"})

    def act_long(self, number: str) -> None:
        """An error that ends in the key, so many characters on."""
        error = {"type": "authentication_error", "message": "x" * int(number) + f" {KEY}"}
        self.reply(401, json.dumps({"type": "error", "error": error}).encode())

    def act_deep(self, _: str) -> None:
        self.reply(200, b"[" * 100 + b"]" * 100)

    def act_moved(self, _: str) -> None:
        self.reply(307, b"", {"location": "http://127.0.0.1:9/elsewhere"})

    def act_cut(self, rest: str) -> None:
        self.answer(rest, "length")

    def act_refuse(self, _: str) -> None:
        self.answer("", "no")

    def act_hang(self, _: str) -> None:
        self.close_connection = True
        self.connection.close()

    def act_stall(self, _: str) -> None:
        """Say nothing until whoever asked hangs up."""
        self.server.stalled.set()
        self.connection.settimeout(60)
        with contextlib.suppress(OSError):
            self.connection.recv(1)
        self.server.hung_up.set()
        self.close_connection = True


@contextlib.contextmanager
def model_puppet() -> Iterator[ModelPuppet]:
    server = ModelPuppet()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
