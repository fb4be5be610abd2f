"""The way out: a host is reached as it was granted and by the proxy only; nothing behind it becomes reachable too."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from escape.attempt import Bench, Did, Refused, granted

from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.steps import PROXY_PORT

CONNECT = """
def act(host, port):
    with socket.create_connection((host, port), 10):
        pass
"""
# What a program says to a proxy, byte for byte; and outside, where there is none, to the host itself.
SAY = """
def act(host, port, said, proxied):
    with socket.create_connection((("127.0.0.1", 3128) if proxied else (host, port)), 10) as made:
        made.settimeout(20)
        made.sendall(said.encode("latin-1"))
        data = b""
        while part := made.recv(4096):
            data += part
        return data.decode("latin-1")
"""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """A host on this machine's loopback that says what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = f"asked for {self.path}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    asked: list[str] = []
    made.asked = asked  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def net(*hosts: str) -> Policy:
    return Policy(net=hosts)


def get(port: int, path: str = "/x", host: str = "127.0.0.1") -> str:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"


def say(bench: Bench, said: str, policy: Policy) -> str:
    end = bench.inside(SAY, {"host": "", "port": 0, "said": said, "proxied": True}, policy=policy)
    assert isinstance(end, Did), end
    return str(end.value)


def test_a_granted_host_is_reached_through_the_proxy_and_by_no_other_way(bench, server):
    port = server.server_port
    policy = net(f"127.0.0.1:{port}")
    where = {"host": "127.0.0.1", "port": port}

    assert "asked for /x" in say(bench, get(port), policy)
    assert Did() == bench.outside(CONNECT, where)
    assert bench.inside(CONNECT, where, policy=policy) in (Refused("EACCES"), Refused("ECONNREFUSED"))


def test_without_a_net_grant_nothing_answers_where_the_proxy_would(bench):
    inside = bench.inside(CONNECT, {"host": "127.0.0.1", "port": PROXY_PORT}, policy=Policy(loopback=True))

    assert Refused("ECONNREFUSED") == inside


@pytest.mark.parametrize("method", ["tunnel", "plain"])
def test_a_port_beside_the_granted_one_is_not_reached(method, bench, server):
    port = server.server_port
    said = get(port) if method == "plain" else f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n" + get(port)
    straight = {"host": "127.0.0.1", "port": port, "said": get(port), "proxied": False}

    outside = bench.outside(SAY, straight)
    assert isinstance(outside, Did)
    assert "asked for" in outside.value
    assert say(bench, said, net("127.0.0.1:1", "example.org:443")).startswith("HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254:80", "127.0.0.1:PORT", "localhost:PORT", "[::1]:PORT", "[::ffff:127.0.0.1]:PORT", "0.0.0.0:PORT"],
)
def test_metadata_and_loopback_addresses_are_not_proxied_to(address, bench, server):
    address = address.replace("PORT", str(server.server_port))

    assert Did() == bench.outside(CONNECT, {"host": "127.0.0.1", "port": server.server_port})
    for said in (
        f"CONNECT {address} HTTP/1.1\r\n\r\n",
        f"GET http://{address}/latest/ HTTP/1.1\r\nHost: {address}\r\n\r\n",
    ):
        assert say(bench, said, net("example.org:443")).startswith("HTTP/1.1 403 ")
    assert [] == server.asked


@pytest.mark.parametrize("number", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", "①②⑦.0.0.1"])
def test_a_number_that_some_read_as_an_address_is_none(number, bench, server):
    port = server.server_port
    said = f"CONNECT {number}:{port} HTTP/1.1\r\n\r\n".encode().decode("latin-1")

    # inet_aton(3) and most clients take the first four.
    if number[0] in "02":
        assert Did() == bench.outside(CONNECT, {"host": number if "x" not in number else "127.1", "port": port})
    answer = say(bench, said, net("example.org:443"))
    assert answer.startswith(("HTTP/1.1 400 ", "HTTP/1.1 403 "))


def test_a_granted_name_that_leads_to_this_machine_is_refused(bench, server):
    """As a name would whose owner rebinds it; DNS itself is played in tests/egress."""
    name = next((name for name in (socket.gethostname(), "ip6-localhost") if leads_here(name)), None)
    if name is None:
        pytest.skip("no name of this machine but localhost leads to a loopback address")
    port = server.server_port

    assert Did() == bench.outside(CONNECT, {"host": name, "port": port})
    answer = say(bench, get(port, host=name.lower()), net(f"{name}:{port}"))
    assert answer.startswith(f"HTTP/1.1 403 Forbidden: {name.lower()}:{port}: its address ")
    assert [] == server.asked


def leads_here(name: str) -> bool:
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return False


def test_a_smuggled_request_is_never_heard(bench, server):
    port = server.server_port
    host = f"127.0.0.1:{port}"
    inner = f"GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    chunked = "Transfer-Encoding: chunked"
    attempts = [
        f"GET http://{host}/1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n{inner}",
        f"GET http://{host}/2 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n{chunked}\r\n\r\n0\r\n\r\n{inner}",
        f"GET http://{host}/3 HTTP/1.1\r\nHost: {host}\r\nHost: other\r\n\r\n{inner}",
        f"GET http://{host}/4 HTTP/1.1\r\nHost: {host}\r\nX: y\r\n Host: other\r\n\r\n{inner}",
        f"GET http://{host}/5 HTTP/1.1\nHost: {host}\n\n{inner}",
        f"GET http://{host}/6 HTTP/1.1\r\nHost: {host}\r\n\r\n{get(port, '/smuggled')}",
    ]

    outside = bench.outside(
        SAY,
        {
            "host": "127.0.0.1",
            "port": port,
            "said": f"GET /outside HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n",
            "proxied": False,
        },
    )
    assert isinstance(outside, Did)
    for said in attempts:
        say(bench, said, net(host))
    assert "/smuggled" not in server.asked
    assert {"/outside", "/1", "/6"} == set(server.asked)


def test_the_port_of_the_proxy_is_all_that_can_be_connected_to(bench):
    serve = """
    def act():
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
            return "connected"
    """

    assert Did("connected") == bench.outside(serve)
    assert bench.inside(serve, policy=net("example.org:443")) in (Refused("EACCES"), Did("connected"))
    assert Did("connected") == bench.inside(serve, policy=Policy(net=("example.org:443",), loopback=True))


def test_what_listens_for_the_proxy_is_not_the_operations(bench):
    """The descriptor has left before its code runs: it can neither accept nor take the port."""
    take = """
    def act():
        open_now = []
        for number in range(3, 64):
            try:
                os.fstat(number)
                open_now.append(number)
            except OSError:
                pass
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(("127.0.0.1", 3128))
        return open_now
    """
    closed = "def act():\n    return [n for n in range(4, 64) if os.path.exists(f'/proc/self/fd/{n}')]"

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert isinstance(bench.outside(take.replace("3128", str(port))), Did)
    assert bench.inside(take, policy=Policy(net=("example.org:443",), loopback=True)) == Refused("EADDRINUSE")
    bench.needs_proc()
    inside = bench.inside(closed, policy=net("example.org:443"))
    assert isinstance(inside, Did)


def test_a_flood_of_connections_leaves_the_proxy_alive(bench, server):
    flood = """
    def act(count):
        held = []
        for number in range(count):
            made = socket.socket()
            made.settimeout(5)
            try:
                made.connect(("127.0.0.1", 3128))
            except OSError:
                break
            held.append(made)
        for made in held:
            made.close()
        return len(held)
    """
    port = server.server_port
    policy = net(f"127.0.0.1:{port}")
    ended = bench.inside(flood, {"count": 200}, policy=policy)

    assert isinstance(ended, Did)
    assert ended.value >= 64
    assert "asked for" in say(bench, get(port), policy)


def test_garbage_is_answered_or_hung_up_on_and_the_proxy_lives(bench, server):
    port = server.server_port
    policy = net(f"127.0.0.1:{port}")
    for said in ("\0" * 1000 + "\r\n\r\n", "\x16\x03\x01\x02\0" + "\r\n\r\n", "x" * 70_000):
        bench.inside(SAY, {"host": "", "port": 0, "said": said, "proxied": True}, policy=policy)

    assert "asked for" in say(bench, get(port), policy)


def test_an_earlier_operations_grant_is_not_the_next_ones(bench, server):
    port = server.server_port

    assert "asked for" in say(bench, get(port), net(f"127.0.0.1:{port}"))
    assert say(bench, get(port), net(f"127.0.0.1:{port + 1 if port < 65535 else 1}")).startswith("HTTP/1.1 403 ")
    assert bench.inside(CONNECT, {"host": "127.0.0.1", "port": PROXY_PORT}) in (
        Refused("ENETUNREACH"), Refused("EADDRNOTAVAIL"), Refused("EACCES"), Refused("ECONNREFUSED"),
    )  # fmt: skip


def test_a_tunnel_ends_with_its_operation(bench):
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        made, _ = listener.accept()
        with made:
            made.settimeout(60)
            while made.recv(100):
                pass
        ended.set()

    leave_open = """
    import os, socket
    def run(params):
        made = socket.create_connection(("127.0.0.1", 3128))
        made.sendall(f"CONNECT 127.0.0.1:{params['port']} HTTP/1.1\\r\\n\\r\\n".encode())
        made.recv(100)
        if not os.fork():
            while True:
                made.recv(100)
        made.sendall(b"x")
        return True
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        outcome = bench.run(leave_open, {"port": port}, policy=net(f"127.0.0.1:{port}"))

        assert outcome.ok, outcome.error
        assert ended.wait(30)
    assert ["allowed"] == [contact.verdict for contact in outcome.contacts]


def test_what_was_refused_is_a_violation_with_the_grant_that_was_missing(bench, server):
    code = """
    import urllib.request
    def run(params):
        try:
            urllib.request.urlopen(params)
        except OSError:
            if not params.endswith("quiet"):
                raise
    """
    url = f"http://127.0.0.1:{server.server_port}/"
    for name, ok in (("loud", False), ("quiet", True)):
        job = replace(bench.job(code, policy=net("example.org:443")), params=json.dumps(url + name).encode())
        outcome = bench.supervisor.run(job)
        (violation,) = outcome.violations
        grant = f"net:127.0.0.1:{server.server_port}"

        assert ok == outcome.ok
        assert (f"tried to reach 127.0.0.1:{server.server_port}: not granted", grant) == (
            violation.what,
            violation.allow,
        )
        if not ok:
            assert ("denied", f"--allow {grant}") == (outcome.reason, outcome.hint)
            assert f"127.0.0.1:{server.server_port}: not granted" in outcome.error


def test_an_operation_with_files_has_the_way_out_too(bench, server):
    port = server.server_port
    policy = Policy(read=granted(read=(bench.project,)).read, net=(f"127.0.0.1:{port}",))

    for _ in range(2):
        assert "asked for /x" in say(bench, get(port), policy)
