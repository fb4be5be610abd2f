"""The supervisor that confines, joined with the way out of a sandbox: what workers, ``exec`` and the library use."""

from __future__ import annotations

from sage_sandbox.sandbox.outside import Gate
from sage_sandbox.sandbox.supervisor import Supervisor


def supervisor(project: str, *, slot: int = 0) -> Supervisor:
    """One that starts an egress proxy of its own with the first operation that has a net grant."""
    return Supervisor(project, slot=slot, gate=_proxy)


def _proxy() -> Gate:
    # Most workers never need it.
    from sage_sandbox.egress.gate import Gate as ProxyGate

    return ProxyGate()
