"""Hosts that fail are left alone: for how long, for whom, and what is written down."""

from __future__ import annotations

import pytest

from sage_sandbox.egress import known
from sage_sandbox.egress.known import Hosts
from sage_sandbox.egress.session import NotReached, Overdrawn, Refused, Session, World
from sage_sandbox.hosts import Target, parse_target
from sage_sandbox.outcome import Contact

API = Target("api.example.org", 443)
ALONE = "left alone after 5 failures in a row"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def operation(names, clock):
    """A session of the next operation of one worker."""
    names.answers = {API.host: [["93.184.216.34"]], "www.example.org": [["93.184.216.35"]]}
    world = World(names.resolve, lambda _: False, Hosts(clock))
    return lambda *granted: Session(tuple(map(parse_target, granted or ("*.example.org:443",))), world)


def fail(session, times=1, target=API):
    for _ in range(times):
        session.not_reached(session.admit(target), "connection refused")


def said(session):
    return [(contact.host, contact.verdict, contact.why, contact.times) for contact in session.contacts()]


def test_after_five_failures_a_host_is_left_alone_and_others_are_not(operation, names):
    session = operation()
    fail(session, 5)
    asked = len(names.asked)
    for _ in range(2):
        with pytest.raises(NotReached, match=f"{ALONE}, tried again in 60 s"):
            session.admit(API)

    assert asked == len(names.asked)
    session.reached(session.admit(Target("www.example.org", 443)))
    session.admit(Target("www.example.org", 443))
    assert [
        (API.host, "failed", "connection refused", 5),
        (API.host, "breaker", "closed to open", 1),
        (API.host, "failed", ALONE, 2),
        ("www.example.org", "allowed", "", 2),
    ] == said(session)


def test_another_port_of_it_is_another_service(operation):
    session = operation("api.example.org:443", "api.example.org:80")
    fail(session, 5)

    session.admit(Target(API.host, 80))


def test_the_next_operation_of_the_worker_knows_and_one_call_finds_out_whether_it_is_back(operation, clock):
    fail(operation(), 5)
    clock.now += 61
    session = operation()
    probe = session.admit(API)
    with pytest.raises(NotReached, match="tried again in 0 s"):
        session.admit(API)
    session.reached(probe)
    session.reached(session.admit(API))

    assert [
        (API.host, "breaker", "open to half-open", 1),
        (API.host, "allowed", "", 2),
        (API.host, "failed", ALONE, 1),
        (API.host, "breaker", "half-open to closed", 1),
    ] == said(session)


def test_a_name_without_an_address_fails_and_one_that_is_refused_does_not(operation, names):
    names.answers = {"www.example.org": [["127.0.0.1"]]}
    session = operation()
    for _ in range(5):
        with pytest.raises(NotReached, match="no address of it is found"):
            session.admit(API)
    with pytest.raises(NotReached, match=ALONE):
        session.admit(API)
    for _ in range(7):
        with pytest.raises(Refused):
            session.admit(Target("www.example.org", 443))


def test_what_is_not_the_hosts_fault_is_no_failure_and_leaves_room_for_another_probe(operation, clock):
    session = operation()
    for _ in range(7):
        session.given_up(session.admit(API), "too many connections at once")
    fail(session, 5)
    clock.now += 61
    session.given_up(session.admit(API), "too many connections at once")

    session.reached(session.admit(API))


def test_a_probe_that_cannot_be_noted_is_given_back(operation, clock):
    fail(operation(), 5)
    clock.now += 61
    session = operation()
    for port in range(1, 101):
        session.note(Contact("a", port, "allowed"))
    with pytest.raises(Overdrawn):
        session.admit(API)

    operation().admit(API)


def test_what_was_not_granted_is_not_remembered(operation):
    session = operation("other.example.org:443")
    with session.turn(API), pytest.raises(Refused):
        session.admit(API)

    assert {} == session.world.hosts._hosts


def test_so_many_hosts_are_remembered_and_first_of_all_those_that_are_left_alone(clock, monkeypatch):
    monkeypatch.setattr(known, "HOSTS_MAX", 2)
    hosts = Hosts(clock)
    first, second, third = (Target(f"h{number}.example.org", 443) for number in range(3))
    for _ in range(5):
        hosts.of(first).breaker.admit().failed("no")
    other = hosts.of(second)
    hosts.of(third)

    assert "open" == hosts.of(first).breaker.state
    assert other is not hosts.of(second)
    for _ in range(5):
        hosts.of(second).breaker.admit().failed("no")
    hosts.of(third)
    assert "closed" == hosts.of(first).breaker.state  # where all are left alone the first is forgotten
