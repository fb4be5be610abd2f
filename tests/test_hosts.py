"""What a net grant names: one way to write each host, and no grant for everybody's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import UsageError
from sage_sandbox.hosts import Target, is_address, normal_host, parse_target, wider

LABELS = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
NAMES = st.lists(LABELS, min_size=2, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.org:443", "example.org:443"),
        ("API.Example.ORG.:0443", "api.example.org:443"),
        ("intranet:80", "intranet:80"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("*.example.org:443", "*.example.org:443"),
        ("*.example.co.uk:443", "*.example.co.uk:443"),
        ("*.me.github.io:443", "*.me.github.io:443"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("localhost:1", "localhost:1"),
        ("[2001:DB8:0::1]:65535", "[2001:db8::1]:65535"),
        ("my_host.example.org:443", "my_host.example.org:443"),
        ("3com.example:443", "3com.example:443"),
    ],
)
def test_a_target_is_written_in_one_way(text, target):
    assert target == str(parse_target(text))
    assert parse_target(target) == parse_target(text)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("example.org", "the port is missing", "write net:example.org:443"),
        ("[::1]", "the port is missing", "write net:[::1]:443"),
        ("https://example.org/x", "that is no host", "for example net:example.org:443"),
        ("example.org:0", "'0' is not a port", ""),
        ("example.org:65536", "is not a port", ""),
        ("example.org:http", "is not a port", ""),
        ("example.org:٤٤٣", "is not a port", ""),
        ("example.org:*", "is not a port", ""),
        (":443", "is not the name of a host", ""),
        (".example.org:443", "is not the name of a host", ""),
        ("example..org:443", "is not the name of a host", ""),
        ("-a.example.org:443", "is not the name of a host", ""),
        ("a b.example.org:443", "is not the name of a host", ""),
        ("a\u202eb.example.org:443", "is not the name of a host", ""),
        ("x" * 64 + ".example.org:443", "is not the name of a host", ""),
        ("x." * 127 + "org:443", "is not the name of a host", ""),
        ("127.1:80", "is not an IPv4 address as it is written", ""),
        ("0x7f.0.0.1:80", "is not an IPv4 address as it is written", ""),
        ("0x7f000001:80", "is not an IPv4 address as it is written", ""),
        ("2130706433:80", "is not an IPv4 address as it is written", ""),
        ("127.0.0.01:80", "is not an IPv4 address as it is written", ""),
        ("::1:80", "an IPv6 address is written in brackets", ""),
        ("[fe80::1%eth0]:80", "names an interface", ""),
        ("[example.org]:80", "is not an IPv6 address", ""),
        ("faß.example:443", "more than one ASCII form", ""),
        ("*:443", "* stands before a domain only", ""),
        ("a*.example.org:443", "* stands before a domain only", ""),
        ("*.*.example.org:443", "* stands before a domain only", ""),
        ("*.10.0.0.1:443", "not before an address", ""),
        ("*.com:443", "everybody's hosts", "name the host, or a domain, as in *.example.com"),
        ("*.localhost:443", "everybody's hosts", "name the host, or a domain, as in *.example.localhost"),
        ("*.co.uk:443", "everybody's hosts", "name the host, or a domain, as in *.example.co.uk"),
        ("*.CO.UK.:443", "everybody's hosts", "name the host, or a domain, as in *.example.co.uk"),
        ("*.github.io:443", "everybody's hosts", "name the host, or a domain, as in *.example.github.io"),
    ],
)
def test_what_is_no_target_is_refused_with_a_reason(text, said, hint):
    with pytest.raises(UsageError) as caught:
        parse_target(text)

    assert said in str(caught.value)
    assert hint == caught.value.hint


@given(NAMES, LABELS)
def test_a_domain_covers_what_is_beneath_it_and_nothing_else(domain, label):
    wild = Target(f"*.{domain}", 443)

    assert wild.covers(Target(f"{label}.{domain}", 443))
    assert wild.covers(Target(f"*.{label}.{domain}", 443))
    assert wild.covers(wild)
    assert not wild.covers(Target(domain, 443))
    assert not wild.covers(Target(f"{label}{domain}", 443))
    assert not wild.covers(Target(f"{label}.{domain}", 444))
    assert not Target(f"{label}.{domain}", 443).covers(wild)


@given(NAMES, st.lists(LABELS, max_size=3))
def test_whatever_covers_a_host_is_found_above_it(domain, labels):
    host = Target(".".join((*labels, domain)), 443)

    for held in (host, Target(f"*.{domain}", 443)):
        assert (held in set(wider(host))) == held.covers(host)
    assert all(held.covers(host) for held in wider(host))


def test_nothing_is_above_an_address():
    assert [Target("10.0.0.1", 80)] == list(wider(Target("10.0.0.1", 80)))
    assert [Target("::1", 80)] == list(wider(Target("::1", 80)))


@given(st.text(max_size=30))
def test_whatever_is_taken_is_a_fixed_point(text):
    try:
        host = normal_host(text)
    except ValueError:
        return
    assert host.isascii()
    assert host == host.lower()
    assert host == normal_host(f"[{host}]" if ":" in host else host)
    assert is_address(host) == (":" in host or host.rpartition(".")[2].isdigit())
