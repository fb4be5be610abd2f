"""Tries to reach the host: to connect to a port somebody listens on, and to send something there."""

from __future__ import annotations

import socket
from typing import Any

from acts import attempt


def run(params: Any) -> dict[str, Any]:
    """TCP, which has to connect, and UDP, which only has to send."""
    address = ("127.0.0.1", params["port"])
    loot = params["loot"].encode()
    return {"acts": [attempt("tcp", lambda: send_tcp(address, loot)), attempt("udp", lambda: send_udp(address, loot))]}


def send_tcp(address: tuple[str, int], loot: bytes) -> tuple[str, bool]:
    """Connect and send."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        stream.connect(address)
        stream.sendall(loot)
    return f"connected, sent {len(loot)} bytes", True


def send_udp(address: tuple[str, int], loot: bytes) -> tuple[str, bool]:
    """Send without a connection."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(5)
        sent = datagrams.sendto(loot, address)
    return f"sent {sent} bytes", True
