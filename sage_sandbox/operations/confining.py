"""The supervisor that confines, joined with the ways out of a sandbox: what workers, ``exec`` and the library use."""

from __future__ import annotations

from sage_sandbox.operations.caller import Caller
from sage_sandbox.sandbox.outside import Gate
from sage_sandbox.sandbox.supervisor import Supervisor


def supervisor(project: str, *, slot: int = 0, caller: Caller | None = None) -> Supervisor:
    """One that starts an egress proxy of its own with the first operation that has a net grant.

    Tools are called with the ``caller``; without one there are none.
    """
    if caller is None:
        return Supervisor(project, slot=slot, gate=_proxy)
    return Supervisor(project, slot=slot, gate=_proxy, handle_call=caller.call, list_tools=caller.list_tools)


def _proxy() -> Gate:
    # Most workers never need it.
    from sage_sandbox.egress.gate import Gate as ProxyGate

    return ProxyGate()
