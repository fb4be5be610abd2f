"""One connection at a time, over real sockets: what is passed on, and what an attacker gets for his trouble."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type"

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from egress.conftest import PATIENCE_S, everything, read_head
from egress.test_messages import SMUGGLED

from sage_sandbox.egress import connection
from sage_sandbox.egress.known import AT_ONCE
from sage_sandbox.egress.messages import HEAD_MAX
from sage_sandbox.egress.session import CONTACTS_MAX, NotReached
from sage_sandbox.hosts import Target
from sage_sandbox.outcome import Contact

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def only(session):
    (contact,) = session.contacts()
    return contact


def settled(session):
    """Its contacts, once every connection of it is over."""
    deadline = time.monotonic() + 20
    while session._sockets and time.monotonic() < deadline:
        time.sleep(0.001)
    return session.contacts()


def get(port, extra=b"", host="127.0.0.1"):
    authority = f"{host}:{port}".encode()
    return b"GET http://%b/x HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority, authority, extra)


def test_a_tunnel_passes_bytes_both_ways_until_both_are_done(make_session, talk, host):
    def echo(made):
        while data := made.recv(1000):
            made.sendall(data.upper())
        made.sendall(b"BYE")

    port = host(echo)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\nearly " % port)

    assert b"HTTP/1.1 200 Connection established\r\n\r\n" == read_head(client)
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert b"EARLY LATEBYE" == everything(client)
    assert (Contact("127.0.0.1", port, "allowed", times=1, sent=10, received=13),) == settled(session)


def test_a_tunnel_passes_much_both_ways_at_once(make_session, talk, host):
    size = 3 << 20

    def both(made):
        sender = threading.Thread(target=made.sendall, args=(bytes(size),))
        sender.start()
        left = size
        while left:
            left -= len(made.recv(1 << 16))
        sender.join()

    port = host(both)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    read_head(client)
    sender = threading.Thread(target=client.sendall, args=(bytes(size),))
    sender.start()

    assert size == len(everything(client))
    sender.join()
    client.close()
    assert (size, size) == (settled(session)[0].sent, session.contacts()[0].received)


def test_a_request_is_passed_on_and_its_answer_comes_back(make_session, talk, host):
    heard = []

    def serve(made):
        heard.append(read_head(made))
        made.sendall(OK.replace(b"OK", b"OK\r\nConnection: keep-alive", 1))

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, b"X-Mine: 1\r\n"))

    assert b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok" == everything(client)
    assert [b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nx-mine: 1\r\nConnection: close\r\n\r\n" % port] == heard
    assert "allowed" == settled(session)[0].verdict


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 5\r\n", b"12345"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n0\r\n\r\n"),
        (b"Content-Length: 0\r\n", b""),
    ],
)
def test_what_follows_a_request_goes_nowhere(framing, body, make_session, talk, host):
    heard: queue.Queue[Any] = queue.Queue()

    def serve(made):
        head = read_head(made)
        data = b""
        while len(data) < len(body):
            data += made.recv(1000)
        made.sendall(OK)
        made.shutdown(socket.SHUT_WR)
        heard.put((head, data + everything(made)))

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, framing) + body + get(port).replace(b"/x", b"/smuggled"))

    assert everything(client).endswith(b"ok")
    head, data = heard.get(timeout=PATIENCE_S)
    assert b"smuggled" not in head
    assert body == data


@pytest.mark.parametrize(("head", "said"), SMUGGLED)
def test_a_request_that_could_be_two_is_answered_and_goes_nowhere(head, said, make_session, talk, names):
    session = make_session("h.example:80", "h.example:443", "example.org:80", "other.example:80")
    client = talk(session)
    client.sendall(head + b"\r\n\r\n")
    answer = everything(client)

    assert answer.startswith((b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.1 431 "))
    assert said.encode() in answer
    assert "refused" == only(session).verdict
    assert said in only(session).why
    assert [] == names.asked


def test_a_body_that_could_be_two_is_cut_off(make_session, talk, host):
    heard = []

    def serve(made):
        heard.append(everything(made))

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, b"Transfer-Encoding: chunked\r\n") + b"5;x\r\n12345\r\n")

    assert everything(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ["allowed", "failed"] == [contact.verdict for contact in settled(session)]


@pytest.mark.parametrize("tunnel", [True, False])
@pytest.mark.parametrize(
    "address", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:7f00:1]", "0.0.0.0", "localhost"]
)
def test_an_address_is_not_reached_unless_granted_as_it_is(address, tunnel, make_session, talk):
    session = make_session("example.org:80", "*.example.org:80")
    client = talk(session)
    client.sendall(
        f"CONNECT {address}:80 HTTP/1.1\r\n\r\n".encode()
        if tunnel
        else f"GET http://{address}:80/latest/meta-data/ HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    )
    answer = everything(client).decode()
    grant = f"net:{address}:80"

    assert answer.startswith(f"HTTP/1.1 403 Forbidden: {address}:80: not granted (--allow {grant})\r\n")
    assert f"sage-sandbox: {address}:80: not granted\nhint: --allow {grant}\n" in answer
    assert ("refused", "not granted", grant) == (only(session).verdict, only(session).why, only(session).allow)


def test_a_name_that_turns_to_this_machine_is_refused_the_second_time(make_session, talk, names, monkeypatch):
    """DNS rebinding: what is checked is what is connected to."""
    names.answers = {"rebind.example": [["93.184.216.34"], ["127.0.0.1"]]}
    reached = []

    def reach(admitted, port, session):
        reached.append((*admitted.addresses, port))
        raise session.not_reached(admitted, "not in a test")

    monkeypatch.setattr(connection, "_reach", reach)
    session = make_session("rebind.example:80")
    answers = []
    for _ in range(2):
        client = talk(session)
        client.sendall(b"GET http://rebind.example/ HTTP/1.1\r\nHost: rebind.example\r\n\r\n")
        answers.append(everything(client))

    assert [("93.184.216.34", 80)] == reached
    assert b"403 Forbidden: rebind.example:80: its address 127.0.0.1 is a loopback address" in answers[1]
    assert ["rebind.example"] * 2 == names.asked


def test_a_host_that_is_not_there_is_said(make_session, talk, names):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        session = make_session(f"127.0.0.1:{port}", "nowhere.example:80")
        client = talk(session)
        client.sendall(get(port))
        refused = everything(client)
    client = talk(session)
    client.sendall(get(80, host="nowhere.example"))
    unknown = everything(client)

    assert b"HTTP/1.1 502 Bad Gateway: 127.0.0.1:%d: 127.0.0.1: Connection refused\r\n" % port in refused
    assert b"nowhere.example:80 cannot be reached: no address of it is found: Name or service not known" in unknown
    assert ["failed", "failed"] == [contact.verdict for contact in settled(session)]


def test_the_next_address_is_tried(make_session, talk, host, monkeypatch):
    port = host(lambda made: made.sendall(OK))
    session = make_session(f"localhost:{port}")
    monkeypatch.setattr(type(session), "_addresses", lambda *_: ["::1", "127.0.0.1"])
    client = talk(session)
    client.sendall(get(port, host="localhost"))

    assert everything(client).endswith(b"ok")


def test_a_host_that_resets_is_said(make_session, talk, host):
    def serve(made):
        read_head(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port))

    assert everything(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


def test_a_body_without_an_end_ends_the_connection(make_session, talk, host):
    heard = queue.Queue[bytes]()
    port = host(lambda made: heard.put(everything(made)))
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, b"Content-Length: 5\r\n") + b"123")
    client.shutdown(socket.SHUT_WR)

    assert b"400 Bad Request" in everything(client)
    assert heard.get(timeout=PATIENCE_S).endswith(b"\r\n\r\n123")
    assert "the body has no end" == settled(session)[-1].why


def test_an_address_of_a_family_that_is_not_there_is_passed_over(make_session, talk, host, monkeypatch):
    port = host(lambda made: made.sendall(OK))
    session = make_session(f"localhost:{port}")
    admitted = session.admit(Target("localhost", port))._replace(addresses=["::1", "127.0.0.1"])
    plain_socket = socket.socket

    def make(family=-1, *args, **kwargs):  # the host's thread makes sockets meanwhile, too
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return plain_socket(family, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", make)
        made = connection._reach(admitted, port, session)
    assert "127.0.0.1" == made.getpeername()[0]
    session.let_go(made)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nX: y", b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_a_host_that_does_not_speak_http_is_said(answer, make_session, talk, host):
    def serve(made):
        read_head(made)
        made.sendall(answer)

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port))

    assert everything(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert "failed" == settled(session)[-1].verdict


def test_an_answer_counts_even_if_the_host_read_no_body(make_session, talk, host):
    def serve(made):
        read_head(made)
        made.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        made.shutdown(socket.SHUT_WR)
        everything(made)

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, b"Content-Length: 1000000\r\n") + bytes(1000))

    assert everything(client).endswith(b"no")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"GET http://h.example/ HTTP/1.1\r\n", b"400"), (b"x" * (HEAD_MAX + 1), b"431"), (b"", b"")],
)
def test_a_request_without_an_end_is_answered(sent, status, make_session, talk):
    session = make_session()
    client = talk(session)
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)

    assert everything(client)[9:12] == status
    assert bool(sent) == bool(settled(session))


def test_a_host_that_takes_no_more_may_still_answer(make_session, talk, host):
    """A request larger than what fits into the sockets between, of which the host reads the head."""
    heard = threading.Event()

    def serve(made):
        read_head(made)
        heard.wait(PATIENCE_S)
        made.sendall(OK)

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(get(port, b"Content-Length: 100000000\r\n"))
    client.settimeout(0.2)
    with suppress(TimeoutError):
        while True:
            client.send(bytes(1 << 20))
    client.settimeout(PATIENCE_S)
    heard.set()

    with suppress(ConnectionResetError):
        assert b"HTTP/1.1 " in everything(client)
    assert "allowed" == settled(session)[0].verdict


def test_what_a_sink_does_not_take_is_kept_or_dropped(make_session):
    class Sink:
        def __init__(self, error):
            self.error = error

        def send(self, _data):
            raise self.error

    for error, left in ((BlockingIOError(), b"x"), (BrokenPipeError(), b"")):
        way = connection.Way(None, Sink(error), connection._Everything(), lambda _: None)
        way.put(b"x")
        way.write()

        assert left == way.buffer
        assert (not left) == way.ended == way.over


def test_a_request_that_never_comes_is_given_up(make_session, talk):
    session = make_session()
    client = talk(session, head_s=0.05)
    client.sendall(b"GET ")

    assert everything(client).startswith(b"HTTP/1.1 408 ")


def test_a_connection_on_which_nothing_is_said_is_given_up(make_session, talk, host):
    done = threading.Event()
    port = host(lambda made: done.wait(20))
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session, idle_s=0.05)
    client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)

    assert everything(client).startswith(b"HTTP/1.1 200 ")
    done.set()


@pytest.mark.parametrize("up", [True, False])
def test_a_connection_ends_with_the_bytes_that_an_operation_may_move(up, make_session, talk, host):
    def serve(made):
        if up:
            everything(made)
        else:
            made.sendall(bytes(1 << 20))

    port = host(serve)
    session = make_session(f"127.0.0.1:{port}", bytes_max=100_000)
    client = talk(session)
    client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    read_head(client)
    with suppress(OSError):  # closed with bytes unread, or in order
        for _ in range(1000 if up else 0):
            client.sendall(bytes(100_000))
        assert len(everything(client)) <= 100_000
    refused = settled(session)[-1]
    assert ("refused", "more than 0 MiB in and out") == (refused.verdict, refused.why)


def test_when_too_many_things_were_tried_a_new_one_is_refused(make_session, talk):
    session = make_session("127.0.0.1:9")
    for port in range(1, CONTACTS_MAX + 1):
        session.note(Contact("x", port, "allowed"))
    client = talk(session)
    client.sendall(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\n\r\n")

    assert b"403 Forbidden: 127.0.0.1:9: more than 100 different" in everything(client)


def test_a_session_that_is_shut_ends_its_connections(make_session, talk, host):
    port = host(lambda made: made.recv(1))
    session = make_session(f"127.0.0.1:{port}")
    client = talk(session)
    client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    read_head(client)
    session.shut()

    assert b"" == everything(client)
    late = talk(session)
    assert b"" == late.recv(1)


def test_a_host_is_not_connected_to_by_a_session_that_is_over(make_session):
    session = make_session("127.0.0.1:9")
    admitted = session.admit(Target("127.0.0.1", 9))
    session.shut()

    with pytest.raises(NotReached, match="too many connections"):
        connection._reach(admitted, 9, session)


def test_no_more_than_four_connections_to_a_host_are_being_made_and_the_next_waits(make_session, talk, monkeypatch):
    waiting: queue.Queue[str] = queue.Queue()
    go_on = threading.Event()

    def reach(admitted, _port, session):
        waiting.put(admitted.tally.contact.host)
        go_on.wait(PATIENCE_S)
        raise session.given_up(admitted, "not in a test")

    monkeypatch.setattr(connection, "_reach", reach)
    session = make_session("127.0.0.1:80", "127.0.0.2:80")
    clients = [talk(session) for _ in range(6)]
    for client in clients[:5]:
        client.sendall(get(80))
    first = [waiting.get(timeout=PATIENCE_S) for _ in range(AT_ONCE)]
    clients[5].sendall(get(80, host="127.0.0.2"))

    assert ["127.0.0.1"] * AT_ONCE == first
    assert "127.0.0.2" == waiting.get(timeout=PATIENCE_S)  # the fifth of the other one is not let past
    assert waiting.empty()
    go_on.set()
    assert [b"HTTP/1.1 502"] * 6 == [everything(client)[:12] for client in clients]
