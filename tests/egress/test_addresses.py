"""Which addresses nobody gets to without having been granted them literally."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.egress import addresses
from sage_sandbox.egress.addresses import is_own, is_private, refusal


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.127.255.255", "carrier-grade NAT"),
        ("169.254.1.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("192.0.0.1", "reserved"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "6to4"),
        ("198.18.0.1", "benchmarking"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::8.8.8.8", "IPv4-compatible"),
        ("64:ff9b::808:808", "NAT64"),
        ("64:ff9b:1::1", "NAT64"),
        ("100::1", "reserved"),
        ("2001::1", "Teredo"),
        ("2001:10::1", "reserved"),
        ("2001:db8::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("3fff::1", "documentation"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fe80::1", "link-local"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
    ],
)
def test_an_address_that_is_not_out_in_the_world_is_refused_by_its_kind(address, what):
    assert what in refusal(address, lambda _: False)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "223.255.255.255",
     "2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888"],
)  # fmt: skip
def test_an_address_of_the_world_is_let_through_unless_it_is_ours(address):
    assert refusal(address, lambda _: False) == ""
    assert refusal(address, lambda _: True) == "one of this machine's"


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_refused_in_whatever_ipv6_form(address):
    for form in (f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}"):
        assert refusal(form, lambda _: False)
    assert refusal(f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::", lambda _: False)


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_refused_too(address):
    if not address.is_global or address.is_multicast:
        assert refusal(str(address), lambda _: False)


def test_only_private_networks_may_be_meant():
    assert is_private("10.0.0.1")
    assert is_private("fd00::1")
    assert not any(map(is_private, ("127.0.0.1", "169.254.169.254", "8.8.8.8", "fe80::1")))


def test_the_kernel_says_which_addresses_are_ours():
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.7")
    assert not is_own("2001:db8::7")


def test_where_any_address_can_be_bound_the_kernel_is_asked_from_where_it_sends(monkeypatch):
    """As with net.ipv4.ip_nonlocal_bind."""
    monkeypatch.setattr(addresses, "_binds", lambda *_: True)

    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.7")
    assert not addresses._sends_from(socket.AF_INET6, "no address")
