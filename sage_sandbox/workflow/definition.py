"""A workflow as the rest of the program knows it: frozen dataclasses, made once from a checked template.

Workers unpickle these, so nothing heavier than the standard library is imported here (the pydantic model that checks a
template is in `workflow.model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar

from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Limits, Policy

OperationType = Literal["python", "command", "mcp", "llm"]
OutputKind = Literal["text", "lines", "json"]


@frozen
class AskedLimits:
    """What a template asks for; None where it says nothing (bytes, seconds)."""

    memory: int | None = None
    cpu_s: float | None = None
    pids: int | None = None
    disk: int | None = None


@frozen
class SourceFile:
    """A Python file of the template, read once: what was digested is what runs. ``name`` is relative to it."""

    name: str
    text: str


@frozen
class Keep:
    """What of a result reaches people and agents; state keeps all of it."""

    fields: tuple[str, ...] = ()
    max_items: int | None = None
    max_bytes: int | None = None


@frozen
class Operation:
    """One thing to run in one sandbox, one tool to call, or one question to a model."""

    id: str
    type: OperationType
    params: Any = None
    code: str = ""
    """python: the source of the main module, inline or read from ``file``."""
    file: str = ""
    """python: the name of the file the code came from; empty when inline."""
    files: tuple[SourceFile, ...] = ()
    packages: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    tool: str = ""
    """mcp: ``server/tool``."""
    model: str = ""
    """llm: ``provider/model``, as are the next four: the question, what goes before it, the longest answer in tokens,
    and the JSON Schema of an answer that is data."""
    prompt: str = ""
    system: str = ""
    max_tokens: int = 0
    schema: Any = None
    output: OutputKind = "text"
    ok_codes: tuple[int, ...] = (0,)
    policy: Policy = Policy()
    limits: AskedLimits = AskedLimits()
    timeout_s: float | None = None
    retries: int = 0
    keep: Keep | None = None
    cache: bool | None = None
    """Whether it may be answered from the cache; None where the template leaves that to its policy."""
    cache_ttl_s: float | None = None
    """How old an answer may be at most, where the template says so."""
    line: int = 0
    """Where the operation stands in its template (1-based)."""


@frozen
class Phase:
    """One or several operations that run in parallel once the dependencies are done."""

    id: str
    name: str
    operations: tuple[Operation, ...]
    dependencies: tuple[str, ...] = ()
    timeout_s: float = Limits().timeout_s
    success_threshold: float = 0.75
    single: bool = False
    """Written as a mapping, not as a list: its result is the operation's own."""


@frozen
class Parameter:
    """A workflow parameter: set by ``--param``, else the default; required where ``required``."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    default: Any = None
    required: bool = True
    description: str = ""


@frozen
class Budgets:
    """The most that a run may spend on the whole, over all its processes; None: no such budget.

    ``tokens`` are those of models, ``cost`` is in the currency of the user's prices, ``time_s`` is running time.
    """

    tokens: int | None = None
    cost: float | None = None
    time_s: float | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Budgets:
        """Budgets by the names of their fields, as far as this version knows them."""
        return cls(**{name: raw.get(name) for name in cls.__dataclass_fields__})

    def held_to(self, other: Budgets) -> Budgets:
        """The smaller of each."""
        return Budgets(
            _smaller(self.tokens, other.tokens), _smaller(self.cost, other.cost), _smaller(self.time_s, other.time_s)
        )

    def replaced_by(self, other: Budgets) -> Budgets:
        """The other's, where it has one."""
        return Budgets(
            self.tokens if other.tokens is None else other.tokens,
            self.cost if other.cost is None else other.cost,
            self.time_s if other.time_s is None else other.time_s,
        )


_Number = TypeVar("_Number", int, float)


def _smaller(one: _Number | None, other: _Number | None) -> _Number | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@frozen
class Template:
    """What a workflow was made of, as it was read: the text, its format, and the text of every file it names."""

    kind: Literal["yaml", "json", "toml"]
    text: str
    files: Mapping[str, str] = field(default_factory=dict)


@frozen
class Workflow:
    """A whole definition, and the template it came from."""

    name: str
    phases: tuple[Phase, ...]
    description: str = ""
    timeout_s: float | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    source: str = ""
    """The path of the template, as given."""
    digest: str = ""
    """SHA-256 (hex) over the template's bytes and those of every file it names."""
    template: Template | None = None
    """None where the workflow was not made from one: there is nothing to store then, and no resume."""
    budgets: Budgets = Budgets()
