"""Which addresses are out in the world: any other is refused, unless a grant names it literally.

Sources: the IANA special-purpose address registries (RFC 6890) as of 2025, and the providers' documents for the
addresses of their metadata services. Of IPv6 only 2000::/3 is in use for the world at all (IANA, "IPv6 Global
Unicast").
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

_METADATA: Final = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, OpenStack
            "169.254.170.2",  # AWS, credentials of a task
            "169.254.170.23",  # AWS, credentials of a pod
            "168.63.129.16",  # Azure, otherwise like any address of the world
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google
        ),
    )
)

_NOT_PUBLIC_4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "unspecified"),
        ("127.0.0.0/8", "loopback"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("192.88.99.0/24", "6to4"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("198.18.0.0/15", "benchmarking"),
        ("240.0.0.0/4", "reserved"),
    )
)

_NOT_PUBLIC_6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
        ("2002::/16", "6to4"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
    )
)
_IN_USE: Final = IPv6Network("2000::/3")

# Addresses that no host has (RFC 5737, RFC 3849).
_NOBODYS: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def refusal(address: str, is_own: Callable[[str], bool]) -> str:
    """What it is, if nobody gets there who was not granted this very address; else nothing.

    ``is_own`` says whether it is an address of this machine, which has public ones too.
    """
    found = ip_address(address)
    if found in _METADATA:
        return "that of a metadata service"
    if kind := _kind(found):
        article = "an" if kind[0] in "aeioI" else "a"
        return f"{article} {kind} address"
    return "one of this machine's" if is_own(address) else ""


def is_private(address: str) -> bool:
    """Whether it is of a private network, where a host of one's own may well be."""
    return _kind(ip_address(address)) == "private"


def _kind(address: IPv4Address | IPv6Address) -> str:
    """What an address that is not out in the world is, or nothing."""
    if isinstance(address, IPv4Address):
        return next((what for network, what in _NOT_PUBLIC_4 if address in network), "")
    known = next((what for network, what in _NOT_PUBLIC_6 if address in network), "")
    return known or ("" if address in _IN_USE else "reserved")


def is_own(address: str) -> bool:
    """Whether it is an address of this machine: the kernel binds no other.

    Unless it is told to bind any (``ip_nonlocal_bind``); then it is asked from where it would send there.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not _binds(family, address):
        return False
    return not _binds(family, _NOBODYS[family]) or _sends_from(family, address)


def _binds(family: socket.AddressFamily, address: str) -> bool:
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as made:
        made.bind((address, 0))
        return True
    return False


def _sends_from(family: socket.AddressFamily, address: str) -> bool:
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as made:
        made.connect((address, 9))  # no packet leaves: a datagram socket only notes where to
        return bool(made.getsockname()[0] == address)
    return False
