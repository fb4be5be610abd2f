"""A tool server that does as it is told, right or wrong: standard library only, over stdio, with the older handshake.

    puppet_server.py [--journal FILE] [--refuse-start] [--stderr TEXT] [--down FILE]

Each tool is a way to behave; ``--journal`` notes starts, calls, cancels and the end, one line each. While there is a
FILE for ``--down`` it does not start, and breaks at each call.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

TOOLS = {
    "echo": {"readOnlyHint": True},
    "structured": {},
    "blocks": {},
    "sleep": {},
    "fail": {},
    "environ": {},
    "cwd": {},
    "pid": {"readOnlyHint": True},
    "count": {},
    "progress": {},
    "open": {},
    "write": {},
    "drop": {},
    "drop-safe": {"idempotentHint": True},
    "stall": {},
    "half": {},
    "huge-line": {},
    "huge-text": {},
    "brackets": {},
    "wrong-id": {},
    "garbage": {},
    "flood": {},
    "rpc-error": {},
    "no-result": {},
}


class Puppet:
    def __init__(self, journal: str, down: str) -> None:
        self.journal = journal
        self.down = down
        self.lock = threading.Lock()
        self.counted = 0
        self.cancelled: dict[object, threading.Event] = {}

    def note(self, text: str) -> None:
        if self.journal:
            with open(self.journal, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(f"{os.getpid()} {text}\n")

    def say(self, message: object) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def write(self, data: bytes) -> None:
        with self.lock:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def answer(self, number: object, result: object) -> None:
        self.say({"jsonrpc": "2.0", "id": number, "result": result})

    def serve(self) -> None:
        self.note("start")
        for line in sys.stdin.buffer:
            self.hear(json.loads(line))
        self.note("end")

    def hear(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        params = message.get("params") or {}
        if method == "initialize":
            version = params["protocolVersion"]
            info = {"name": "puppet", "version": "7"}
            self.answer(number, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
        elif method == "tools/list":
            tools = [
                {"name": name, "description": f"does {name}", "inputSchema": {"type": "object"}, "annotations": hints}
                for name, hints in TOOLS.items()
            ]
            self.answer(number, {"tools": tools})
        elif method == "notifications/cancelled":
            self.note(f"cancelled {params.get('requestId')}")
            if event := self.cancelled.get(params.get("requestId")):
                event.set()
        elif method == "tools/call":
            self.note(f"call {params['name']} {number}")
            self.cancelled[number] = threading.Event()
            threading.Thread(target=self.act, args=(number, params), daemon=True).start()
        elif number is not None:
            error = {"code": -32601, "message": f"there is no {method}"}
            self.say({"jsonrpc": "2.0", "id": number, "error": error})

    def act(self, number: object, params: dict[str, Any]) -> None:
        if self.down and os.path.exists(self.down):  # noqa: PTH110
            os._exit(4)
        given = params.get("arguments") or {}
        act = getattr(self, "do_" + params["name"].replace("-", "_"), None)
        if act is None:
            error = {"code": -32602, "message": f"there is no tool {params['name']}"}
            self.say({"jsonrpc": "2.0", "id": number, "error": error})
        else:
            act(number, given, params)

    def text(self, number: object, text: str, **more: object) -> None:
        self.answer(number, {"content": [{"type": "text", "text": text}], **more})

    # -- well-behaved ------------------------------------------------------------------------------------------------

    def do_echo(self, number, given, params):
        self.text(number, str(given.get("text", "")))

    def do_structured(self, number, given, params):
        self.answer(number, {"content": [{"type": "text", "text": "text"}], "structuredContent": {"given": given}})

    def do_blocks(self, number, given, params):
        self.answer(number, {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})

    def do_sleep(self, number, given, params):
        if self.cancelled[number].wait(given["seconds"]):
            return
        self.text(number, "slept")

    def do_fail(self, number, given, params):
        self.text(number, "it cannot be done", isError=True)

    def do_environ(self, number, given, params):
        self.answer(number, {"content": [], "structuredContent": dict(os.environ)})

    def do_cwd(self, number, given, params):
        self.text(number, os.getcwd())  # noqa: PTH109

    def do_pid(self, number, given, params):
        self.text(number, str(os.getpid()))

    def do_count(self, number, given, params):
        with self.lock:
            self.counted += 1
            now = self.counted
        time.sleep(0.05)
        with self.lock:
            self.counted -= 1
        self.text(number, str(now))

    def do_progress(self, number, given, params):
        token = params["_meta"]["progressToken"]
        for done in range(1, 4):
            about = {"progressToken": token, "progress": done, "total": 3, "message": f"step {done}"}
            self.say({"jsonrpc": "2.0", "method": "notifications/progress", "params": about})
        self.text(number, "done")

    def do_open(self, number, given, params):
        try:
            with open(given["path"], encoding="utf-8") as file:  # noqa: PTH123
                self.text(number, file.read())
        except OSError as error:
            self.text(number, type(error).__name__)

    def do_write(self, number, given, params):
        try:
            with open(given["path"], "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write("written")
            self.text(number, "written")
        except OSError as error:
            self.text(number, type(error).__name__)

    def do_rpc_error(self, number, given, params):
        self.say({"jsonrpc": "2.0", "id": number, "error": {"code": -32602, "message": "no such argument"}})

    # -- faulty ------------------------------------------------------------------------------------------------------

    def do_drop(self, number, given, params):
        os._exit(3)

    do_drop_safe = do_drop

    def do_stall(self, number, given, params):
        pass

    def do_half(self, number, given, params):
        self.write(b'{"jsonrpc": "2.0", "id":')
        os._exit(0)

    def do_huge_line(self, number, given, params):
        with self.lock:
            sys.stdout.buffer.write(b'{"jsonrpc": "2.0", "id": 1, "result": "')
            for _ in range(100):
                sys.stdout.buffer.write(b"x" * (1 << 20))
            sys.stdout.buffer.write(b'"}\n')

    def do_huge_text(self, number, given, params):
        self.text(number, "x" * ((16 << 20) + 10))

    def do_brackets(self, number, given, params):
        self.write(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"x":[' % number + b"[]," * 3_000_000 + b"1]}}\n")

    def do_wrong_id(self, number, given, params):
        self.text(f"not-{number}", "for somebody else")

    def do_garbage(self, number, given, params):
        self.write(b"Listening ...\n\xff\xfe\n[]\n{}\n")
        self.text(number, "after the garbage")

    def do_flood(self, number, given, params):
        token = params["_meta"]["progressToken"]
        about = {"progressToken": token, "progress": 1}
        line = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": about}).encode() + b"\n"
        while not self.cancelled[number].is_set():
            self.write(line * 100)

    def do_no_result(self, number, given, params):
        self.answer(number, {"content": "this is no list"})


def main(argv: list[str]) -> None:
    if "--stderr" in argv:
        sys.stderr.write(argv[argv.index("--stderr") + 1] + "\n")
    if "--refuse-start" in argv:
        sys.exit(1)
    journal, down = (argv[argv.index(name) + 1] if name in argv else "" for name in ("--journal", "--down"))
    if down and os.path.exists(down):  # noqa: PTH110
        sys.exit(1)
    Puppet(journal, down).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
