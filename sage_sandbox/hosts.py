"""What a ``net:`` grant names: a host or the hosts beneath a domain, and a port, in the one form that is compared.

Pure. A host is lower-case, in its ASCII form (IDNA), without the dot at its end. What looks like a number is an address
and is written as one: ``127.1``, ``0x7f000001`` and ``2130706433`` are neither hosts nor addresses here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen

WILDCARD: Final = "*."
HOST_MAX: Final = 253  # RFC 1035, 2.3.4, without the root's dot

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # what WHATWG's URL standard takes for an address' end
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
# IDNA 2003 and 2008 make different names of these (RFC 5894, 7.2): ß, final sigma, the two joiners.
_AMBIGUOUS: Final = frozenset("ßẞς\u200c\u200d")

_SECOND_LEVEL: Final = frozenset((
    "ac", "ad", "asn", "co", "com", "ed", "edu", "firm", "gen", "go", "gob", "gouv", "gov", "govt", "gr", "id", "ind",
    "info", "ltd", "me", "mil", "muni", "ne", "net", "nhs", "nic", "nom", "or", "org", "plc", "police", "press", "pvt",
    "res", "sch", "web",
))  # fmt: skip
"""What registries of countries sell names beneath: ``co.uk``, ``com.br``, ``ne.jp``."""

_SHARED: Final = frozenset((
    "amazonaws.com", "appspot.com", "azureedge.net", "azurewebsites.net", "blogspot.com", "cloudapp.net",
    "cloudfront.net", "cloudfunctions.net", "core.windows.net", "deno.dev", "duckdns.org",
    "execute-api.amazonaws.com", "fastly.net", "firebaseapp.com", "fly.dev", "github.dev", "github.io", "gitlab.io",
    "glitch.me", "googleapis.com", "googleusercontent.com", "herokuapp.com", "hf.space", "loca.lt", "netlify.app",
    "ngrok-free.app", "ngrok.app", "ngrok.dev", "ngrok.io", "onrender.com", "pages.dev", "r2.dev", "railway.app",
    "repl.co", "replit.app", "run.app", "s3.amazonaws.com", "storage.googleapis.com", "supabase.co", "surge.sh",
    "trycloudflare.com", "vercel.app", "web.app", "webhook.site", "workers.dev",
))  # fmt: skip
"""Domains beneath which anybody may have a host at once: granting all of them grants everybody. A selection."""


@frozen
class Target:
    """A host and a port: ``*.`` before a domain stands for every host beneath it, and not for itself."""

    host: str
    port: int

    def __str__(self) -> str:
        """As a grant has it: an IPv6 address stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def wild(self) -> bool:
        """Whether it stands for the hosts beneath a domain."""
        return self.host.startswith(WILDCARD)

    def covers(self, other: Target) -> bool:
        """Whether all that ``other`` stands for is meant too."""
        if self.port != other.port:
            return False
        beneath = self.wild and other.host.removeprefix(WILDCARD).endswith(self.host.removeprefix("*"))
        return self.host == other.host or beneath


def wider(target: Target) -> Iterator[Target]:
    """The target and everything that could cover it, the narrowest first."""
    yield target
    if not is_address(target.host):
        labels = target.host.removeprefix(WILDCARD).split(".")
        yield from (Target(WILDCARD + ".".join(labels[start:]), target.port) for start in range(1, len(labels)))


def parse_target(text: str) -> Target:
    """What stands after ``net:`` in a grant; UsageError says what is wrong with it."""
    if "/" in text:
        raise UsageError("that is no host: a net grant takes HOST:PORT", "for example net:example.org:443")
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        raise UsageError("the port is missing", f"write net:{text}:443")
    wild = host.startswith(WILDCARD)
    try:
        name = normal_host(host.removeprefix(WILDCARD))
        target = Target(WILDCARD + name if wild else name, parse_port(port))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if wild:
        _check_domain(name)
    return target


def parse_port(text: str) -> int:
    """A port; ValueError if it is none."""
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def normal_host(text: str) -> str:
    """A host or an address as it is compared; ValueError if it is neither."""
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1])
    if ":" in text:
        raise ValueError(f"{text!r} is not a host: an IPv6 address is written in brackets")
    if "*" in text:
        raise ValueError("* stands before a domain only, as in *.example.org")
    name = (text if text.isascii() else _to_ascii(text)).lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > HOST_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{text!r} is not the name of a host")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(name)
    return name


def is_address(host: str) -> bool:
    """Whether a normal host is an address."""
    return ":" in host or host.replace(".", "").isdigit()


def _ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IPv4 address as it is written, four numbers from 0 to 255") from error


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IPv6 address") from error
    if address.scope_id is not None:
        raise ValueError(f"{text!r} names an interface of this machine, which no grant can")
    return str(address)


def _to_ascii(text: str) -> str:
    if _AMBIGUOUS & set(text):
        raise ValueError(f"{text!r} has more than one ASCII form: write the one you mean (xn--…)")
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{text!r} is not the name of a host") from error


def _check_domain(name: str) -> None:
    """UsageError if anybody could have a host beneath it, as far as that is known here."""
    labels = name.split(".")
    if is_address(name):
        raise UsageError("* stands before a domain only, not before an address")
    registry = len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _SECOND_LEVEL
    if len(labels) < 2 or registry or name in _SHARED:
        raise UsageError(
            f"*.{name} would be everybody's hosts: {name} is no domain of one owner",
            f"name the host, or a domain, as in *.example.{name}",
        )
