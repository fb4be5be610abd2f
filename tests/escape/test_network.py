"""The network: none, in any family; unix sockets reach no process outside."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from escape.attempt import Bench, Did, Refused, granted

from sage_sandbox.policy import Policy

CONNECT = """
def act(family, kind, address):
    with socket.socket(family, kind) as made:
        made.settimeout(10)
        made.connect(tuple(address))
        if kind == socket.SOCK_DGRAM:
            made.send(b"x")
"""
SOCKET = """
def act(family, kind, protocol):
    os.close(call("socket", family, kind, protocol))
"""
# socket(2), linux/socket.h: the numbers, for Python does not name them all.
FAMILIES = {
    "ax25": 3,
    "ipx": 4,
    "appletalk": 5,
    "x25": 9,
    "key": 15,
    "netlink": 16,
    "packet": 17,
    "rds": 21,
    "pppox": 24,
    "llc": 26,
    "ib": 27,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "rxrpc": 33,
    "phonet": 35,
    "ieee802154": 36,
    "caif": 37,
    "alg": 38,
    "nfc": 39,
    "vsock": 40,
    "kcm": 41,
    "qipcrtr": 42,
    "smc": 43,
    "xdp": 44,
    "mctp": 45,
}


@contextmanager
def listening(host: str, kind: int) -> Iterator[tuple[str, int]]:
    """A port of the host that takes what comes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"this host has no {host}")
        if kind == socket.SOCK_STREAM:
            server.listen()
        yield server.getsockname()[:2]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_the_host_is_not_reached(bench: Bench, host: str, kind: int) -> None:
    with listening(host, kind) as address:
        params = {
            "family": int(socket.AF_INET6 if ":" in host else socket.AF_INET),
            "kind": int(kind),
            "address": address,
        }

        assert Did() == bench.outside(CONNECT, params)
        assert bench.inside(CONNECT, params) in (Refused("ENETUNREACH"), Refused("EADDRNOTAVAIL"), Refused("EACCES"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_the_host_is_not_reached_with_an_own_loopback(bench: Bench, host: str) -> None:
    with listening(host, socket.SOCK_STREAM) as address:
        params = {
            "family": int(socket.AF_INET6 if ":" in host else socket.AF_INET),
            "kind": int(socket.SOCK_STREAM),
            "address": address,
        }

        assert Did() == bench.outside(CONNECT, params)
        assert bench.inside(CONNECT, params, policy=Policy(loopback=True)) in (
            Refused("ECONNREFUSED"),
            Refused("EADDRNOTAVAIL"),
        )


def test_an_own_loopback_is_the_only_interface(bench: Bench) -> None:
    interfaces = "def act():\n    return [name for _, name in socket.if_nameindex()]"
    serve = """
    def act():
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
            return "connected"
    """

    # if_nameindex asks over netlink, which is refused, loopback or not: that is why it is read off /proc.
    assert Refused("EPERM") == bench.inside(interfaces, policy=Policy(loopback=True))
    assert Did("connected") == bench.inside(serve, policy=Policy(loopback=True))
    bench.needs_proc()
    names = "def act():\n    return sorted(line.split(':')[0].strip() for line in list(open('/proc/self/net/dev'))[2:])"
    assert isinstance(bench.outside(names), Did)
    inside = bench.inside(names, policy=Policy(loopback=True))
    assert isinstance(inside, Did)
    assert "lo" in inside.value
    assert not [name for name in inside.value if name.startswith(("eth", "en", "wl", "docker", "veth"))]


def test_nothing_listens_without_a_grant(bench: Bench) -> None:
    serve = "def act():\n    socket.create_server(('127.0.0.1', 0)).close()"

    assert Did() == bench.outside(serve)
    assert isinstance(bench.inside(serve), Refused)


def test_no_name_is_resolved(bench: Bench) -> None:
    outcome = bench.run("import socket\ndef run():\n    return socket.getaddrinfo('example.org', 443)")

    # What the resolver is and whether it answers is the host's affair; that it is asked is ours.
    assert isinstance(bench.outside("def act():\n    return socket.getaddrinfo('127.0.0.1', 443)[0][4][0]"), Did)
    assert not outcome.ok
    assert "gaierror" in outcome.error


def test_a_packet_to_an_address_of_the_network_has_no_way(bench: Bench) -> None:
    send = """
    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.sendto(b"x", ("255.255.255.255", 9))
    """
    route = (
        "def act():\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:\n"
        "        made.connect(('127.0.0.1', 9))"
    )

    assert Did() == bench.outside(route)
    assert Refused("ENETUNREACH") == bench.inside(send)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_of_another_family_is_not_made(bench: Bench, family: str) -> None:
    kind = (
        socket.SOCK_SEQPACKET
        if family in ("alg", "qipcrtr")
        else socket.SOCK_RAW
        if family in ("netlink", "packet")
        else socket.SOCK_STREAM
    )

    # EAFNOSUPPORT and the like are the kernel's answer for a family that it was built without: it was reached.
    bench.refuses(SOCKET, "EPERM", {"family": FAMILIES[family], "kind": int(kind), "protocol": 0}, own_namespaces=True)


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        pytest.param(socket.AF_INET, socket.SOCK_RAW, 1, id="raw-icmp"),
        pytest.param(socket.AF_INET, socket.SOCK_RAW, 255, id="raw-ip"),
        pytest.param(socket.AF_INET6, socket.SOCK_RAW, 58, id="raw-icmp6"),
        pytest.param(socket.AF_INET, socket.SOCK_DGRAM, 1, id="ping"),
        pytest.param(socket.AF_INET, socket.SOCK_STREAM, 262, id="mptcp"),
        pytest.param(socket.AF_INET, socket.SOCK_STREAM, 132, id="sctp"),
        pytest.param(socket.AF_INET, socket.SOCK_DGRAM, 136, id="udplite"),
        pytest.param(socket.AF_INET, 10, 0, id="packet-of-old"),
        pytest.param(socket.AF_UNIX, socket.SOCK_DGRAM, 0, id="unix-datagram"),
        pytest.param(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, id="unix-seqpacket"),
        pytest.param(
            socket.AF_UNIX,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            0,
            id="unix-datagram-with-flags",
        ),
        pytest.param(1 << 32 | socket.AF_NETLINK, socket.SOCK_RAW, 0, id="netlink-with-a-high-word"),
    ],
)
def test_a_socket_of_another_kind_is_not_made(bench: Bench, family: int, kind: int, protocol: int) -> None:
    params = {"family": int(family), "kind": int(kind), "protocol": protocol}

    bench.refuses(SOCKET, "EPERM", params, own_namespaces=True)


def test_a_datagram_socket_is_not_made_in_pairs(bench: Bench) -> None:
    """Any one of a pair can send to any other by its path."""
    bench.refuses("def act():\n    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "EPERM")


def test_a_datagram_does_not_reach_a_socket_by_its_path(bench: Bench) -> None:
    send = (
        "def act(path):\n"
        "    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:\n"
        "        made.sendto(b'x', path)"
    )
    here = os.getcwd()
    os.chdir(bench.elsewhere)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind("datagrams")
            (bench.elsewhere / "datagrams").chmod(0o777)
            to = f"os.chdir({str(bench.elsewhere)!r})\n"

            assert Did() == bench.outside(to + send, {"path": "datagrams"})
            assert Refused("EPERM") == bench.inside(send, {"path": str(bench.elsewhere / "datagrams")[:100]})
    finally:
        os.chdir(here)


def test_a_socket_of_the_host_is_not_reached_by_its_path(bench: Bench, tmp_path: Path) -> None:
    """In /run and /tmp, where services have theirs: the folders are not there, or another."""
    connect = "def act(path):\n    with socket.socket(socket.AF_UNIX) as made:\n        made.connect(path)"
    path = f"/tmp/sage-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            server.listen()

            assert Did() == bench.outside(connect, {"path": path})
            assert Refused("ENOENT") == bench.inside(connect, {"path": path})
            assert Refused("ENOENT") == bench.inside(connect, {"path": path}, policy=granted(read=(tmp_path,)))
        finally:
            os.unlink(path)


def test_an_abstract_socket_of_the_host_is_not_reached(bench: Bench) -> None:
    connect = "def act(name):\n    with socket.socket(socket.AF_UNIX) as made:\n        made.connect('\\0' + name)"
    name = {"name": f"sage-escape-{os.getpid()}"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name["name"])
        server.listen()

        assert Did() == bench.outside(connect, name)
        assert bench.inside(connect, name) in (Refused("ECONNREFUSED"), Refused("EPERM"))


def test_no_descriptor_goes_to_the_supervisor(bench: Bench) -> None:
    """SCM_RIGHTS over the result socket: the kernel closes what a recv without room for it was sent."""
    send = """
    def act():
        import array
        with socket.socket(fileno=os.dup(3)) as result:
            for _ in range(50):
                result.sendmsg([b""] or [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))])
    """
    before = len(os.listdir("/proc/self/fd"))
    first = bench.inside("def act():\n    pass")
    held = len(os.listdir("/proc/self/fd"))
    bench.inside(send)

    assert Did() == first
    assert len(os.listdir("/proc/self/fd")) <= max(before, held)
