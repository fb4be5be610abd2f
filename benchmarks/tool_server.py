"""A tool server that costs as little as one in Python can: ``echo`` and ``wait``, over stdio, standard library only."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

_TOOLS = [
    {"name": name, "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
    for name in ("echo", "wait")
]
_lock = threading.Lock()


def _say(message: dict[str, Any]) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def _wait(number: object, seconds: float) -> None:
    time.sleep(seconds)
    _answer(number, "waited")


def _answer(number: object, text: str) -> None:
    _say({"id": number, "result": {"content": [{"type": "text", "text": text}]}})


def _hear(message: dict[str, Any]) -> None:
    method, number, params = message.get("method"), message.get("id"), message.get("params") or {}
    match method:
        case "initialize":
            info = {"name": "bench", "version": "1"}
            result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
            _say({"id": number, "result": result})
        case "tools/list":
            _say({"id": number, "result": {"tools": _TOOLS}})
        case "tools/call" if params["name"] == "wait":
            threading.Thread(target=_wait, args=(number, params["arguments"]["seconds"])).start()
        case "tools/call":
            _answer(number, str(params["arguments"]["text"]))
        case _ if number is not None:
            _say({"id": number, "error": {"code": -32601, "message": "no such method"}})


if __name__ == "__main__":
    for line in sys.stdin:
        _hear(json.loads(line))
