"""A template's policy as a list of asks, and how a grant is written down for the user."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import lru_cache

from sage_sandbox.escaping import escape
from sage_sandbox.policy import Grant, Policy
from sage_sandbox.workflow.definition import Workflow


@lru_cache(maxsize=1024)  # thousands of operations share a few policies
def asks_of(policy: Policy) -> tuple[Grant, ...]:
    """What a policy as written asks for, one grant each; ``unprotected`` is nothing a template can ask."""
    asks = [
        *(Grant("read", path) for path in policy.read),
        *(Grant("write", path) for path in policy.write),
        *(Grant("write-through", path) for path in policy.write_through),
        *([Grant("loopback")] if policy.loopback else []),
        *(Grant("net", host) for host in policy.net),
        *(Grant("tool", name) for name in policy.tool),
        *(Grant("model", name) for name in policy.model),
        *(Grant("env", name) for name in policy.env),
    ]
    return tuple(dict.fromkeys(asks))


def all_asks(workflow: Workflow) -> tuple[Grant, ...]:
    """What the whole workflow asks for, each once, in the order of the file."""
    operations = (operation for phase in workflow.phases for operation in phase.operations)
    return tuple(dict.fromkeys(ask for operation in operations for ask in asks_of(operation.policy)))


def policy_of(grants: Iterable[Grant], unprotected: Iterable[str] = ()) -> Policy:
    """Resolved grants as the policy of one operation."""
    values: dict[str, dict[str, None]] = {}
    for grant in grants:
        values.setdefault(grant.kind, {})[grant.value] = None
    writes = {"write", "write-through"} & values.keys()
    return Policy(
        read=tuple(values.get("read", ())),
        write=tuple(values.get("write", ())),
        write_through=tuple(values.get("write-through", ())),
        net=tuple(values.get("net", ())),
        loopback="loopback" in values,
        tool=tuple(values.get("tool", ())),
        model=tuple(values.get("model", ())),
        env=tuple(values.get("env", ())),
        unprotected=tuple(unprotected) if writes else (),
    )


def as_typed(ask: Grant) -> Grant:
    """The grant that means after ``--allow`` what the ask means in a template, where ``~`` is a name like any other."""
    return Grant(ask.kind, f"./{ask.value}", ask.forced) if ask.value.startswith("~") else ask


def as_option(grant: Grant) -> str:
    """``--allow KIND:VALUE``, ready for a shell and safe for a terminal."""
    return f"--allow {quote(str(grant))}"


def quote(text: str) -> str:
    r"""Quote a word for a shell; what a terminal must not see is written as ``$'\xNN'``."""
    if escape(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_spell(char) for char in text) + "'"


def _spell(char: str) -> str:
    if char in "'\\":
        return "\\" + char
    if escape(char) == char:
        return char
    # Half of a surrogate pair is a byte of a file name that is no UTF-8, or nonsense that must still be shown.
    lone = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", lone))
