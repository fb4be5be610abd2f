"""Short ways to write workflows in tests."""

from __future__ import annotations

from typing import Any

from sage_sandbox.workflow.definition import Operation, Phase, Workflow


def op(name: str = "op-1", code: str = "ok", **fields: Any) -> Operation:
    return Operation(name, "python", code=code, **fields)


def single(
    name: str, *dependencies: str, code: str = "ok", op_fields: dict[str, Any] | None = None, **fields: Any
) -> Phase:
    operations = (op(code=code, **(op_fields or {})),)
    return Phase(name, name.title(), operations, dependencies, single=True, **fields)


def many(name: str, *operations: Operation, needs: tuple[str, ...] = (), **fields: Any) -> Phase:
    return Phase(name, name.title(), operations, needs, **fields)


def flow(*phases: Phase, **fields: Any) -> Workflow:
    return Workflow("test", phases, **fields)
