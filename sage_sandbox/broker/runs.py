"""The runs that a broker serves: what each registered, and what its token opens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sage_sandbox.broker.frames import BadFrame
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import grants_model, grants_tool
from sage_sandbox.providers import Provider
from sage_sandbox.providers import from_document as provider_from_document
from sage_sandbox.toolservers.definition import Server, from_document


@frozen
class Keeping:
    """How the answers a run gets are kept: sealed with ``key`` (hex), or authenticated where not ``encrypt``.

    ``ttl_s`` is how old one may be that stands in for a server. ``first`` are operations (``phase/operation``) that are
    answered from what is kept if it is not older than so many seconds, ``never`` those for which nothing is kept. With
    ``asks`` there is somebody to be asked whether an old answer may stand in.
    """

    key: str = field(repr=False)
    encrypt: bool
    ttl_s: float
    first: Mapping[str, float] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    asks: bool = False


@frozen
class Registration:
    """What a coordinator says of its run. ``servers`` are approved; nothing in them is expanded yet.

    ``grants`` are tool patterns by operation (``phase/operation``), ``values`` what the variables of the definitions
    stand for, ``environ`` what a server that is started gets besides its own. Of the servers in ``shared`` a session
    serves all runs. ``models`` are model patterns by operation, ``providers`` who answers for them, keys included.
    ``audit_key`` (hex) is empty where nothing is written down, ``keeping`` None where no answer is kept.
    """

    token: str
    run: str
    feature: str
    project: str
    grants: Mapping[str, tuple[str, ...]]
    servers: tuple[Server, ...]
    values: Mapping[str, str]
    environ: Mapping[str, str]
    shared: tuple[str, ...] = ()
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    providers: tuple[Provider, ...] = ()
    audit_key: str = ""
    keeping: Keeping | None = None

    def document(self) -> dict[str, Any]:
        """As it goes over the socket."""
        return {
            "token": self.token,
            "run": self.run,
            "feature": self.feature,
            "project": self.project,
            "grants": {operation: list(patterns) for operation, patterns in self.grants.items()},
            "servers": [server.document() for server in self.servers],
            "values": dict(self.values),
            "environ": dict(self.environ),
            "shared": list(self.shared),
            "models": {operation: list(patterns) for operation, patterns in self.models.items()},
            "providers": [provider.document() for provider in self.providers],
            "auditKey": self.audit_key,
            "keeping": asdict(self.keeping) if self.keeping is not None else None,
        }


def read_registration(raw: Mapping[str, Any]) -> Registration:
    """As it came over the socket, from a process of ours; BadFrame if it did not."""
    try:
        return Registration(
            token=raw["token"],
            run=raw["run"],
            feature=raw["feature"],
            project=raw["project"],
            grants={operation: tuple(patterns) for operation, patterns in raw["grants"].items()},
            servers=tuple(from_document(server) for server in raw["servers"]),
            values=raw["values"],
            environ=raw["environ"],
            shared=tuple(raw["shared"]),
            models={operation: tuple(patterns) for operation, patterns in raw["models"].items()},
            providers=tuple(provider_from_document(provider) for provider in raw["providers"]),
            audit_key=raw["auditKey"],
            keeping=_read_keeping(raw["keeping"]) if raw["keeping"] is not None else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadFrame(f"a registration lacks something: {error}") from error


def _read_keeping(raw: Mapping[str, Any]) -> Keeping:
    return Keeping(raw["key"], raw["encrypt"], raw["ttl_s"], dict(raw["first"]), tuple(raw["never"]), raw["asks"])


@dataclass(eq=False, slots=True)
class Run:
    """A registered run: ``tell`` passes an event to its coordinator."""

    registration: Registration
    tell: Callable[[Mapping[str, Any]], None]
    servers: Mapping[str, Server] = field(init=False)
    providers: Mapping[str, Provider] = field(init=False)

    def __post_init__(self) -> None:
        self.servers = {server.name: server for server in self.registration.servers}
        self.providers = {provider.name: provider for provider in self.registration.providers}

    def may(self, operation: str, tool: str) -> bool:
        """Whether this operation was granted the tool."""
        return grants_tool(self.registration.grants.get(operation, ()), tool)

    def may_ask(self, operation: str, model: str) -> bool:
        """Whether this operation was granted the model."""
        return grants_model(self.registration.models.get(operation, ()), model)

    def uses(self, service: str) -> bool:
        """Whether it may call the server, or ask the provider (``model:NAME``), that is called so."""
        kind, _, name = service.partition(":")
        return service in self.servers or (kind == "model" and name in self.providers)

    def granted_servers(self, operation: str) -> tuple[Server, ...]:
        """The servers of which the operation was granted anything."""
        patterns: Iterable[str] = self.registration.grants.get(operation, ())
        names = dict.fromkeys(pattern.partition("/")[0] for pattern in patterns)
        return tuple(self.servers[name] for name in names if name in self.servers)


class Runs:
    """The runs by token. Tokens are looked up by their digest: how long that takes says nothing about them."""

    def __init__(self) -> None:
        self._runs: dict[bytes, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Any:
        return iter(tuple(self._runs.values()))

    def add(self, run: Run) -> None:
        """Serve a run. BadFrame if its token is somebody's already."""
        key = _digest(run.registration.token)
        if key in self._runs or len(run.registration.token) < 32:
            raise BadFrame("that token cannot be used")
        self._runs[key] = run

    def remove(self, run: Run) -> None:
        """Serve it no more."""
        self._runs.pop(_digest(run.registration.token), None)

    def find(self, token: object) -> Run | None:
        """The run that has this token."""
        return self._runs.get(_digest(token)) if isinstance(token, str) else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
