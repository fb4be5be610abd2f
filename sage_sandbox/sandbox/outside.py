"""The way out of a sandbox that a net grant gives: the seam to the egress proxy, and what an operation is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from sage_sandbox.outcome import Contact, Violation
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.steps import PROXY_PORT

_PROXY: Final = f"http://127.0.0.1:{PROXY_PORT}"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_GIT: Final = (("safe.directory", "*"), ("protocol.ssh.allow", "never"), ("protocol.git.allow", "never"))
"""git itself refuses by name what cannot go through a proxy, instead of failing to resolve a host."""


class Gate(Protocol):
    """What serves the listener of one operation after the other; between `open` and `shut` it belongs to one."""

    def open(self, listener: int, granted: Sequence[str]) -> None:
        """Serve what comes to the listener (a descriptor that stays the caller's) under these net grants."""
        ...

    def shut(self) -> tuple[Contact, ...]:
        """End every connection; what was asked for, and what became of it."""
        ...

    def close(self) -> None:
        """Leave nothing running."""
        ...


def environment(policy: Policy) -> tuple[tuple[str, str], ...]:
    """The variables by which programs find the proxy, in the spellings that are in use."""
    if not policy.net:
        return ()
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = [(spelled, _PROXY) for name in names for spelled in (name, name.upper())]
    # With a loopback of its own that is where these lead, unless a grant names the host's.
    granted = {net.rpartition(":")[0] for net in policy.net}
    exempt = ",".join(host.strip("[]") for host in _LOOPBACK if policy.loopback and host not in granted)
    git = [("GIT_CONFIG_COUNT", str(len(_GIT)))]
    for number, (key, value) in enumerate(_GIT):
        git += [(f"GIT_CONFIG_KEY_{number}", key), (f"GIT_CONFIG_VALUE_{number}", value)]
    return (*proxies, ("no_proxy", exempt), ("NO_PROXY", exempt), ("NODE_USE_ENV_PROXY", "1"), *git)


def violations(contacts: Sequence[Contact]) -> tuple[Violation, ...]:
    """What the proxy refused, each once."""
    refused = [contact for contact in contacts if contact.verdict == "refused"]
    return tuple(dict.fromkeys(Violation(_tried(contact), contact.allow) for contact in refused))


def _tried(contact: Contact) -> str:
    where = f"tried to reach {contact.host}:{contact.port}: " if contact.host else ""
    return f"{where}{contact.why}"
