"""Which files a project gets, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.projectfiles.merging import ENTRY, MCP_JSON, server_in, with_ignored, with_server
from sage_sandbox.workflow.model import schema

STARTER: Final = Path(__file__).parent / "starter"
SCHEMA: Final = ".sage/schema/template.json"
COMMAND: Final = ".claude/commands/sage.workflow.md"
# Where clients of all kinds look for skills (agentskills.io, "How to integrate skills into your agent").
SKILL: Final = ".agents/skills/sage-workflow/SKILL.md"
TEMPLATES: Final = ("hello.yaml", "overview.yaml")

Make = Callable[[bytes | None], bytes]


def _nothing(_: bytes) -> bool:
    return False


@frozen
class Wanted:
    """One file by its path in the project: ``make`` says from what it holds what it should hold.

    ``is_kept``: whether what it goes on holding is the user's, and not what we would have written.
    """

    path: str
    make: Make
    is_kept: Callable[[bytes], bool] = _nothing


def wanted() -> tuple[Wanted, ...]:
    """Every file that `init` sees to, in the order it shows them."""
    return (
        _started(".sage/README.md", "README.md"),
        _started(".sage/config.toml", "config.toml"),
        *(_started(f".sage/templates/{name}", name) for name in TEMPLATES),
        _ours(SCHEMA, json.dumps(schema(), indent=2).encode() + b"\n"),
        Wanted(".gitignore", with_ignored),
        Wanted(MCP_JSON, with_server, lambda data: server_in(data) != ENTRY),
        _ours(COMMAND, _text("command.md") + _text("workflow.md")),
        _ours(SKILL, _text("skill.md") + _text("workflow.md")),
    )


def _started(path: str, name: str) -> Wanted:
    """Written where there is none: from then on it is the user's."""
    text = _text(name)
    return Wanted(path, lambda before: text if before is None else before, lambda before: before != text)


def _ours(path: str, data: bytes) -> Wanted:
    """Made by us, and brought up to date."""
    return Wanted(path, lambda _: data)


def _text(name: str) -> bytes:
    return (STARTER / name).read_bytes()
