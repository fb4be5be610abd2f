"""What one operation may reach, over names whose answers a test makes up."""

from __future__ import annotations

import pytest

from sage_sandbox.egress.session import CONNECTIONS_MAX, CONTACTS_MAX, NotReached, Overdrawn, Refused, plain
from sage_sandbox.hosts import Target
from sage_sandbox.outcome import Contact

API = Target("api.example.org", 443)


def test_a_granted_host_is_resolved_once_and_given_by_its_addresses(make_session, names):
    names.answers = {API.host: [["93.184.216.34", "2606:2800:220:1::1", "93.184.216.34"]]}

    assert ["93.184.216.34", "2606:2800:220:1::1"] == make_session("*.example.org:443").admit(API)[0]
    assert [API.host] == names.asked


def test_a_host_that_is_not_granted_is_never_asked_for(make_session, names):
    for session in (make_session(), make_session("example.org:443", "api.example.org:80")):
        with pytest.raises(Refused) as caught:
            session.admit(API)

        assert (Contact(API.host, 443, "refused", "not granted", f"net:{API}", 1),) == session.contacts()
        assert ("not granted", "net:api.example.org:443") == (caught.value.why, caught.value.allow)
    assert [] == names.asked


@pytest.mark.parametrize(
    ("answer", "why", "allow"),
    [
        (["127.0.0.1"], "its address 127.0.0.1 is a loopback address", ""),
        (["169.254.169.254"], "its address 169.254.169.254 is that of a metadata service", ""),
        (["10.1.2.3"], "its address 10.1.2.3 is a private address", "net:10.1.2.3:443"),
        (["93.184.216.34", "fd00::1"], "its address fd00::1 is a private address", "net:[fd00::1]:443"),
        (["93.184.216.34", "::ffff:127.0.0.1"], "its address ::ffff:127.0.0.1 is an IPv4-mapped address", ""),
        (["fe80::1%2"], "its address fe80::1%2 names an interface", ""),
        (["93.184.216.99"], "its address 93.184.216.99 is one of this machine's", ""),
    ],
)
def test_one_address_that_is_not_out_in_the_world_refuses_the_name(answer, why, allow, make_session, names):
    names.answers = {API.host: [answer]}
    with pytest.raises(Refused) as caught:
        make_session("api.example.org:443", own=["93.184.216.99"]).admit(API)

    assert (why, allow) == (caught.value.why, caught.value.allow)


def test_an_address_that_is_granted_itself_may_be_a_names(make_session, names):
    names.answers = {API.host: [["10.1.2.3"]]}

    assert ["10.1.2.3"] == make_session("api.example.org:443", "10.1.2.3:443").admit(API)[0]
    with pytest.raises(Refused):
        make_session("api.example.org:443", "10.1.2.3:80").admit(API)


def test_a_literal_is_let_through_only_as_it_was_granted(make_session, names):
    session = make_session("127.0.0.1:80", "localhost:81", "[::1]:80")

    assert ["127.0.0.1"] == session.admit(Target("127.0.0.1", 80))[0]
    assert ["::1"] == session.admit(Target("::1", 80))[0]
    assert ["127.0.0.1", "::1"] == session.admit(Target("localhost", 81))[0]
    for other in (Target("127.0.0.1", 81), Target("localhost", 80), Target("::ffff:127.0.0.1", 80)):
        with pytest.raises(Refused):
            session.admit(other)
    assert [] == names.asked


def test_a_name_that_answers_otherwise_the_second_time_is_checked_again(make_session, names):
    names.answers = {API.host: [["93.184.216.34"], ["127.0.0.1"]]}
    session = make_session("api.example.org:443")

    assert ["93.184.216.34"] == session.admit(API)[0]
    with pytest.raises(Refused):
        session.admit(API)
    assert (
        Contact(API.host, 443, "allowed", times=1),
        Contact(API.host, 443, "refused", "its address 127.0.0.1 is a loopback address", times=1),
    ) == session.contacts()
    names.answers.clear()
    with pytest.raises(NotReached, match="no address of it is found: Name or service not known"):
        session.admit(API)
    assert "failed" == session.contacts()[-1].verdict


def test_what_came_to_something_else_keeps_its_place(make_session):
    session = make_session()
    tallies = [session.note(Contact("a", port, "allowed")) for port in range(1, CONTACTS_MAX + 1)]
    session.correct(tallies[0], Contact("a", 1, "failed", "no"))

    assert CONTACTS_MAX == len(session.contacts())
    assert Contact("a", 1, "failed", "no", times=1) == session.contacts()[-1]
    session.note(Contact("a", 2, "allowed"))
    session.correct(tallies[1], Contact("a", 2, "failed", "no"))
    assert Contact("a", 2, "allowed", times=1) in session.contacts()
    assert "" == session.contacts()[-1].host


def test_what_was_tried_is_counted(make_session):
    session = make_session()
    tally = session.note(Contact("a", 1, "allowed"))
    session.move(tally, sent=5, received=7)
    session.note(Contact("b", 2, "refused", "no"))
    session.move(session.note(Contact("a", 1, "allowed")), sent=1)

    assert (
        Contact("a", 1, "allowed", times=2, sent=6, received=7),
        Contact("b", 2, "refused", "no", times=1),
    ) == session.contacts()
    assert Contact(**plain(session.contacts()[0])) == session.contacts()[0]


def test_more_different_things_than_are_told_apart_are_refused_and_counted(make_session):
    session = make_session()
    for port in range(1, CONTACTS_MAX + 1):
        session.note(Contact("a", port, "allowed"))
    for port in range(2):
        with pytest.raises(Overdrawn):
            session.note(Contact("b", port, "allowed"))
    session.note(Contact("a", 1, "allowed"))

    assert CONTACTS_MAX + 1 == len(session.contacts())
    assert ("", "refused", 2) == (
        session.contacts()[-1].host,
        session.contacts()[-1].verdict,
        session.contacts()[-1].times,
    )


def test_a_name_is_noted_before_it_is_asked_for(make_session, names):
    seen: list[Contact] = []

    def resolve(_host, _port):
        seen.extend(session.contacts())
        return ["93.184.216.34"]

    names.resolve = resolve
    session = make_session("*.example.org:443")
    session.admit(API)

    assert [Contact(API.host, 443, "allowed", times=1)] == seen


def test_when_too_many_things_were_tried_no_name_is_asked_for(make_session, names):
    """Else whoever answers for a domain could be told things name by name, unseen."""
    session = make_session("*.example.org:443")
    for port in range(1, CONTACTS_MAX + 1):
        session.note(Contact("a", port, "allowed"))
    with pytest.raises(Overdrawn):
        session.admit(API)

    assert [] == names.asked


def test_what_is_said_of_a_contact_is_short(make_session):
    """So that a flood of it does not become more than a worker takes."""
    session = make_session()
    session.note(Contact("", 0, "refused", "x" * 100_000))

    assert 200 == len(session.contacts()[0].why)


def test_no_more_bytes_are_moved_than_an_operation_may(make_session):
    session = make_session(bytes_max=10)
    tally = session.note(Contact("a", 1, "allowed"))
    session.move(tally, sent=4, received=6)
    with pytest.raises(Overdrawn, match="more than 0 MiB in and out"):
        session.move(tally, received=1)


class Sock:
    def shutdown(self, _how):
        raise OSError

    def close(self):
        pass


def test_nothing_is_kept_open_above_the_cap_or_after_the_end(make_session):
    session = make_session()
    socks = [Sock() for _ in range(2 * CONNECTIONS_MAX)]

    assert all(map(session.keep, socks))
    assert not session.keep(Sock())
    session.let_go(socks[0])
    assert session.keep(socks[0])
    session.shut()
    session.let_go(socks[0])
    assert not session.keep(Sock())
