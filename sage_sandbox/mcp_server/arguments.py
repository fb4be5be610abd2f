"""What the arguments of a call have to be: what does not fit is refused with a code, in our words, and nothing is done.

The SDK would say it in pydantic's words, and would pass over an argument that a tool does not have, as if it had been
heeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, ValidationError

from sage_sandbox.escaping import clip
from sage_sandbox.mcp_server.refusals import Refusal
from sage_sandbox.mcp_server.shapes import Options

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata

_SHOWN: Final = 10
_BRANCHES: Final = frozenset({"str", "dict[str,any]"})
"""What pydantic adds to the path of an argument that may be of either kind."""


class Arguments:
    """What the tools of a server take. One for each server, and a middleware of it."""

    def __init__(self) -> None:
        self._taken: dict[str, FuncMetadata] = {}

    def guard(self, server: MCPServer[Any]) -> None:
        """Look from now on at what the tools that the server has are called with, and have it say so in its schemas."""
        for tool in server._tool_manager.list_tools():  # noqa: SLF001 - the SDK passes over what it does not know
            model = tool.fn_metadata.arg_model
            model.model_config["extra"] = "forbid"
            model.model_rebuild(force=True)
            tool.parameters["additionalProperties"] = False
            self._taken[tool.name] = tool.fn_metadata

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Answer for a call that does not fit."""
        if ctx.method == "tools/call" and (refusal := self._wrong(ctx.params or {})) is not None:
            return CallToolResult(content=[TextContent(type="text", text=refusal.text())], is_error=True)
        return await call_next(ctx)

    def _wrong(self, params: Mapping[str, Any]) -> Refusal | None:
        name, arguments = params.get("name"), params.get("arguments") or {}
        taken = self._taken.get(name) if isinstance(name, str) else None
        if taken is None or not isinstance(arguments, dict):
            return None  # the SDK knows what to say of that
        try:
            taken.validate_arguments(arguments)
        except ValidationError as error:
            wrong = _explained(error, taken.arg_model)
            message = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
            return Refusal("WORKFLOW_VALIDATION_ERROR", message, f"tools/list says what {name} takes")
        return None


def _explained(error: ValidationError, checked: type[BaseModel]) -> list[str]:
    """``argument: what is wrong with it``, once for each: where either of two kinds would do, both are named."""
    from sage_sandbox.workflow.findings import did_you_mean
    from sage_sandbox.workflow.wording import EXPECTED, name_of

    kinds: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    for part in error.errors(include_url=False):
        kind = part["type"]
        where = clip(".".join(str(step) for step in part["loc"] if step not in _BRANCHES), 80)
        if (expected := EXPECTED.get(kind.replace("_parsing", "_type"))) is not None:
            kinds.setdefault(where, []).append(expected)
            said[where] = f"must be {' or '.join(kinds[where])}, not {name_of(part['input'])}"
        elif kind == "missing":
            said[where] = "is missing"
        elif kind == "extra_forbidden":
            known = (checked if len(part["loc"]) == 1 else Options).model_fields
            said[where] = f"unknown here{did_you_mean(str(part['loc'][-1]), known)}"
        else:
            said[where] = part["msg"].replace("Input should be", "must be")
    return [f"{where}: {what}" for where, what in said.items()]
