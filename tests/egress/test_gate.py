"""The proxy as a process: confined, ended with its worker, and not believed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from egress.conftest import everything
from sandbox import throwaway

from sage_sandbox.egress import confinement, gate, proxy
from sage_sandbox.egress.gate import DIED, Gate, contacts
from sage_sandbox.egress.session import CONTACTS_MAX, World, plain
from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.outcome import Contact
from sage_sandbox.sandbox import steps
from sage_sandbox.sandbox.inside import syscalls as sc

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _possible(request):
    try:
        steps.identity()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    if not sc.landlock_abi():
        pytest.skip("Landlock")


@pytest.fixture
def way_out():
    made = Gate()
    yield made
    made.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def ask(listener, target):
    with socket.create_connection(listener.getsockname(), 30) as client:
        client.sendall(f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return everything(client)


def test_it_serves_one_operation_after_the_other(way_out, listener, host):
    port = host(lambda made: (made.recv(1000), made.sendall(OK)))
    way_out.open(listener.fileno(), [f"127.0.0.1:{port}"])
    assert ask(listener, f"127.0.0.1:{port}").endswith(b"ok")
    (first,) = way_out.shut()
    process = way_out._process
    with socket.create_server(("127.0.0.1", 0)) as other:
        way_out.open(other.fileno(), ["example.org:443"])
        assert b"403 Forbidden" in ask(other, f"127.0.0.1:{port}")
        (second,) = way_out.shut()

    assert ("127.0.0.1", port, "allowed", 1) == (first.host, first.port, first.verdict, first.times)
    assert "refused" == second.verdict
    assert process is way_out._process


def test_a_host_that_fails_is_left_alone_for_the_next_operation_too(way_out, listener):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = f"127.0.0.1:{closed.getsockname()[1]}"
    way_out.open(listener.fileno(), [target])
    answers = [ask(listener, target) for _ in range(6)]
    first = way_out.shut()
    with socket.create_server(("127.0.0.1", 0)) as other:
        way_out.open(other.fileno(), [target])
        next_one = ask(other, target)
        (second,) = way_out.shut()

    assert all(b"502 Bad Gateway" in answer and b"onnection refused" in answer for answer in answers[:5])
    assert b"left alone after 5 failures in a row, tried again in " in answers[5]
    assert b"left alone" in next_one
    assert [("failed", 5), ("breaker", 1), ("failed", 1)] == [(contact.verdict, contact.times) for contact in first]
    assert ("failed", "left alone after 5 failures in a row") == (second.verdict, second.why)


def test_it_is_confined_and_knows_nothing(way_out, listener):
    way_out.open(listener.fileno(), ["example.org:443"])
    assert way_out._process is not None
    folder = Path(f"/proc/{way_out._process.pid}")
    said = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)

    assert ("1", "2", "3") == (said["NoNewPrivs"], said["Seccomp"], said["Seccomp_filters"])
    assert {"0" * 16} == {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    if os.geteuid() == 0:
        assert b"" == (folder / "environ").read_bytes()
        assert int(said["Uid"].split()[0]) >= steps.UID_BASE
        assert "0" * 16 == said["CapBnd"]
    else:
        # Undumpable: not even its own user may look.
        with pytest.raises(PermissionError):
            (folder / "environ").read_bytes()


def test_many_hosts_and_long_refusals_fit_through(way_out, listener):
    way_out.open(
        listener.fileno(), [f"host-{number}.{'x' * 60}.{'y' * 60}.example.org:443" for number in range(10_000)]
    )
    for number in range(CONTACTS_MAX):
        with socket.create_connection(listener.getsockname(), 30) as client:
            client.sendall(f"CONNECT {number}{'x' * 16_000}:443 HTTP/1.1\r\n\r\n".encode())
            assert everything(client).startswith(b"HTTP/1.1 400 ")

    assert CONTACTS_MAX == len(way_out.shut())


def test_it_ends_with_its_worker(way_out, listener):
    way_out.open(listener.fileno(), ["example.org:443"])
    process = way_out._process
    way_out._control.close()

    assert 0 == process.wait(30)


def test_one_that_died_is_started_anew_for_the_next_operation(way_out, listener):
    way_out.open(listener.fileno(), ["example.org:443"])
    way_out._process.send_signal(signal.SIGKILL)
    way_out._process.wait()

    assert (DIED,) == way_out.shut()
    assert (DIED,) == way_out.shut()
    way_out.open(listener.fileno(), ["example.org:443"])
    assert () == way_out.shut()


def test_one_that_died_unnoticed_is_started_anew(way_out, listener):
    way_out.open(listener.fileno(), ["example.org:443"])
    way_out._process.send_signal(signal.SIGKILL)
    way_out._process.wait()
    way_out.open(listener.fileno(), ["example.org:443"])

    assert () == way_out.shut()


@pytest.mark.parametrize(
    ("boot", "said"),
    [
        ("", "it did not start"),
        ('import os, sys; os.write(int(sys.argv[2]), b\'\\0\\0\\0\\x10{"failed": "no"}\')', "cannot be had: no"),
        ("import os, sys; os.write(int(sys.argv[2]), b'\\0\\0\\0\\x02[]')", "it did not start"),
        ("import os, sys; os.write(int(sys.argv[2]), b'\\xff\\0\\0\\x02[]')", "it did not start"),
        ("import os, sys; os.write(int(sys.argv[2]), b'\\0\\0\\0\\x0d{\"ready\": 1}  ')", "it died"),
    ],
)
def test_without_a_proxy_no_operation_goes_out(boot, said, way_out, listener, monkeypatch):
    monkeypatch.setattr(gate, "_BOOT", boot)
    if said == "it died":
        plain_wait = way_out._start

        def start():
            control = plain_wait()
            way_out._process.wait()
            return control

        monkeypatch.setattr(way_out, "_start", start)
    with pytest.raises(SandboxUnavailable, match=said) as caught:
        way_out.open(listener.fileno(), ["example.org:443"])

    assert "egress proxy" == caught.value.feature
    assert way_out._process is None


def test_one_that_does_not_end_is_killed(way_out, listener, monkeypatch):
    monkeypatch.setattr(gate, "ANSWER_S", 0.01)
    waits = []

    class Stubborn:
        def wait(self, timeout=None):
            waits.append(timeout)
            if timeout:
                raise subprocess.TimeoutExpired("proxy", timeout)

        def kill(self):
            waits.append("kill")

    way_out._process = Stubborn()
    way_out.close()

    assert [0.01, "kill", None] == waits


# What it says is checked.


CONTACT = plain(Contact("h", 1, "refused", "why", "net:H.example:1", 1, 2, 3))


def test_a_contact_is_taken_with_a_grant_that_is_one():
    assert (Contact("h", 1, "refused", "why", "net:h.example:1", 1, 2, 3),) == contacts([CONTACT])
    assert "" == contacts([CONTACT | {"allow": "net:$(reboot)"}])[0].allow
    assert 500 == len(contacts([CONTACT | {"why": "x" * 9999}])[0].why)


@pytest.mark.parametrize(
    "raw",
    [
        None, {}, [None], [CONTACT] * (CONTACTS_MAX + 2), [CONTACT | {"port": "1"}], [CONTACT | {"times": True}],
        [CONTACT | {"verdict": "granted"}], [CONTACT | {"host": "x" * 300}], [{"host": "h"}],
    ],
)  # fmt: skip
def test_what_no_proxy_says_is_not_taken(raw):
    with pytest.raises(ValueError, match="contact"):
        contacts(raw)


# The same code in this process and in one that is thrown away, where it is measured.


def test_the_control_loop_serves_until_the_worker_is_gone(listener, host):
    ours, theirs = socket.socketpair()
    server = proxy.Server(theirs, World(lambda *_: [], lambda _: False))
    thread = threading.Thread(target=server.serve)
    thread.start()
    port = host(lambda made: (made.recv(1000), made.sendall(OK)))
    with ours, theirs:
        proxy.send(ours, {"order": "shut"})
        assert ({"contacts": []}, []) == proxy.receive(ours)
        proxy.send(ours, {"order": "open", "granted": [["127.0.0.1", port]]}, (listener.fileno(),))
        assert ask(listener, f"127.0.0.1:{port}").endswith(b"ok")
        proxy.send(ours, {"order": "shut"})
        answer, _ = proxy.receive(ours)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(30)

    assert ["allowed"] == [contact["verdict"] for contact in answer["contacts"]]
    assert not thread.is_alive()


def test_names_are_resolved_by_this_machine():
    assert "127.0.0.1" in proxy.resolve("localhost", 80)


def confined_main():
    """Be the proxy; what it says first, and what is refused to it then."""
    ours, theirs = socket.socketpair()
    base = steps.UID_BASE if steps.identity().privileged else 0
    serve = proxy.Server.serve
    seen = {}

    def look(self):
        acts: dict[str, Callable[[], object]] = {
            "local socket": lambda: socket.socket(socket.AF_UNIX).close(),
            "pair": socket.socketpair,
            "server": lambda: socket.create_server(("127.0.0.1", 0)).close(),
            "program": lambda: os.execv("/bin/true", ["true"]),
            "fork": lambda: os._exit(0) if not os.fork() else None,
            "signal": lambda: os.kill(os.getppid(), 0),
            "read": lambda: Path("/etc/passwd").read_text(),
            "home": lambda: list(Path("/root").iterdir()),
            "write": lambda: Path("/tmp/sage-egress-proxy").write_text(""),
            "core": lambda: None if resource.getrlimit(resource.RLIMIT_CORE)[0] <= 1 else 1 / 0,
            "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
            "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
            "resolver": lambda: Path("/etc/hosts").read_text(),
        }
        for name, act in acts.items():
            try:
                act()
                seen[name] = True
            except OSError:
                seen[name] = False
        ours.shutdown(socket.SHUT_RDWR)
        serve(self)

    proxy.Server.serve = look  # type: ignore[method-assign]
    proxy.main(theirs.detach(), base)
    return seen


def test_a_confined_proxy_can_do_nothing_but_speak_to_the_network():
    assert {
        "local socket": False, "pair": False, "server": False, "program": False, "fork": False, "signal": False,
        "read": False, "home": False, "write": False, "core": True, "udp": True, "raw": False, "resolver": True,
    } == throwaway.in_child(confined_main)  # fmt: skip


def test_a_proxy_that_cannot_be_confined_says_so_and_serves_nobody():
    def act():
        ours, theirs = socket.socketpair()

        def refuse(_ruleset):
            raise OSError(1, "landlock_restrict_self: Operation not permitted")

        sc.landlock_restrict_self = refuse
        proxy.main(theirs.detach(), 0)
        return proxy.receive(ours)[0]

    assert "landlock_restrict_self" in throwaway.in_child(act)["failed"]


def test_what_does_not_hold_after_all_is_named():
    with pytest.raises(PermissionError, match="no new privileges does not hold"):
        throwaway.in_child(confinement._check)


def test_a_call_that_goes_through_or_fails_otherwise_is_not_refused():
    assert not confinement._refused(lambda: None)
    assert not confinement._refused(lambda: os.close(-1))
