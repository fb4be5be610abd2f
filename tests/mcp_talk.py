"""A project with templates, and ways to speak with its server: in this process, or as one that a client starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from commands import PACKAGE_FOLDER
from mcp import Client, StdioServerParameters

from sage_sandbox.grants.memory import Memory
from sage_sandbox.mcp_server.server import make_server
from sage_sandbox.policy import Grant
from sage_sandbox.workflow.loading import load

if TYPE_CHECKING:
    from mcp.types import CallToolResult

SERVE = f"import sys; sys.path.insert(0, {PACKAGE_FOLDER!r}); from sage_sandbox.cli.main import main; sys.exit(main())"
LEGACY, MODERN = "legacy", "2026-07-28"

ONE: dict[str, Any] = {
    "id": "a",
    "name": "A",
    "operations": {"type": "python", "code": "def run():\n    return {'found': 7}"},
}
TWO: dict[str, Any] = {
    "id": "b",
    "name": "B",
    "dependencies": ["a"],
    "operations": {"type": "python", "code": "def run(inputs):\n    return inputs['a']['found'] + 1"},
}
# Waits until somebody opens the gate: nothing here depends on how long anything takes.
GATED: dict[str, Any] = {
    "type": "python",
    "code": """\
import os, time
def run():
    while not os.path.exists('gate/open'):
        time.sleep(0.02)
    return 'through'
""",
    "policy": {"write_through": ["gate"]},
}


@dataclass
class Project:
    """A folder, the user's environment, and the templates that were put there."""

    path: Path
    environ: Mapping[str, str]

    def write(self, name: str, *phases: Mapping[str, Any], **head: Any) -> Path:
        path = self.path / ".sage" / "templates" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name, **head, "phases": list(phases)}), encoding="utf-8")
        return path

    def gated(self, name: str = "gated", *after: Mapping[str, Any]) -> None:
        """A template whose first phase waits for the gate; its user has allowed that for good."""
        (self.path / "gate").mkdir(exist_ok=True)
        path = self.write(name, {"id": "wait", "name": "Wait", "operations": GATED}, *after)
        self.allow(path, Grant("write-through", str(self.path / "gate")))

    def allow(self, template: Path, *grants: Grant) -> None:
        Memory.of_user(self.environ).remember(load(template), self.path, grants)

    def open_gate(self) -> None:
        (self.path / "gate" / "open").touch()

    @property
    def served(self) -> StdioServerParameters:
        """How a client starts the server."""
        return StdioServerParameters(
            command=sys.executable, args=["-P", "-c", SERVE, "serve"], env=dict(self.environ), cwd=self.path
        )

    def talk(self, story: Callable[[Client], Awaitable[None]], mode: str = LEGACY) -> None:
        """Tell a story to the server as a process of its own."""
        self._tell(self.served, story, mode)

    def talk_here(self, story: Callable[[Client], Awaitable[None]], mode: str = LEGACY) -> None:
        """Tell it to the server in this process."""
        self._tell(make_server(self.path, self.environ), story, mode)

    def _tell(self, server: Any, story: Callable[[Client], Awaitable[None]], mode: str) -> None:
        async def tell() -> None:
            with anyio.fail_after(110):
                async with Client(server, mode=mode) as client:
                    await story(client)

        anyio.run(tell)


def text_of(result: CallToolResult) -> str:
    """What a model reads of an answer."""
    return "\n".join(block.text for block in result.content if block.type == "text")


def links_of(result: CallToolResult) -> list[str]:
    return [block.uri for block in result.content if block.type == "resource_link"]


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The document of a call that succeeds."""
    result = await client.call_tool(f"sage_workflow_{tool}", arguments)
    assert not result.is_error, text_of(result)
    document: dict[str, Any] | None = result.structured_content
    assert document is not None
    return document


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The text of a call that is refused, from its code on."""
    result = await client.call_tool(f"sage_workflow_{tool}", arguments)
    assert result.is_error, result
    return text_of(result).removeprefix(f"Error executing tool sage_workflow_{tool}: ")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again; the story has an end of its own."""
    while not await holds():  # noqa: ASYNC110 - of a process there is no event
        await anyio.sleep(0.02)
