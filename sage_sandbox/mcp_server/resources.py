"""What tools link to instead of carrying it: a run's results, its log, the files it left; and how the server is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from sage_sandbox.errors import NoSuchRun, SageError, UsageError
from sage_sandbox.mcp_server import answers
from sage_sandbox.mcp_server.answers import ANSWER_MOST
from sage_sandbox.mcp_server.following import in_thread
from sage_sandbox.mcp_server.health import health
from sage_sandbox.mcp_server.refusals import Call, refusal
from sage_sandbox.mcp_server.reporting import report

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from sage_sandbox.mcp_server.runs import Runs

RUN: Final = "sage://runs/{feature}"
LOG: Final = f"{RUN}/log"
REPORT: Final = f"{RUN}/report"
ARTIFACT: Final = f"{RUN}/artifacts/{{+path}}"
HEALTH: Final = "sage://health"
_NOTICE_MOST: Final = 500


def add_resources(server: MCPServer[Any], runs: Runs) -> None:
    """Give a server the resources of one project."""

    @server.resource(HEALTH, title="How the server is", mime_type="application/json")
    async def sage_health() -> str:
        """Version, project, templates and runs; what is wrong, if anything."""
        return _json(await in_thread(health, runs))

    @server.resource(RUN, title="A run's results", mime_type="application/json")
    async def run(feature: str) -> str:
        """How a run stands, and the kept part of each result."""
        with _told(feature):
            return _json(await in_thread(_run, runs, feature))

    @server.resource(LOG, title="A run's log", mime_type="text/plain")
    async def log(feature: str) -> str:
        """The last lines of what happened in a run."""
        with _told(feature):
            return _last_lines(await in_thread(runs.log, feature))

    @server.resource(REPORT, title="A run's report", mime_type="text/markdown")
    async def page(feature: str) -> str:
        """How a run stands, phase by phase, for people to read."""
        with _told(feature):
            return await in_thread(lambda: report(runs.standing(feature), runs.left(feature)))

    @server.resource(ARTIFACT, title="A file that a run left", mime_type="text/plain")
    async def artifact(feature: str, path: str) -> str:
        """The beginning of a file that an operation left, as text."""
        with _told(feature):
            return await in_thread(_file, runs, feature, path)


@contextmanager
def _told(feature: str) -> Iterator[None]:
    """Only the text of these two exceptions reaches a client."""
    try:
        yield
    except (NoSuchRun, UsageError, FileNotFoundError) as error:
        raise ResourceNotFoundError(refusal(error, Call(feature)).text()) from error
    except (SageError, OSError) as error:
        raise ResourceError(refusal(error, Call(feature)).text()) from error


def _run(runs: Runs, feature: str) -> dict[str, Any]:
    standing = runs.standing(feature)
    status = answers.status_of(standing).document()
    about = {name: status[name] for name in ("feature", "template", "phase", "startedAt", "lastUpdatedAt", "progress")}
    return {**about, **answers.executed(standing, runs.left(feature)).document()}


def _file(runs: Runs, feature: str, path: str) -> str:
    file, text = runs.artifact(feature, path, ANSWER_MOST - _NOTICE_MOST)
    place = f".sage/artifacts/{feature}/{file.path}"[: _NOTICE_MOST // 2]
    if text is None:
        return f"no text: {file.size:,} bytes, SHA-256 {file.sha256}; the file is {place}"
    shown = len(text.encode())
    return text if shown >= file.size or not shown else f"{text}\n… of {file.size:,} bytes; the file is {place}"


def _last_lines(lines: list[str]) -> str:
    """As many of the last lines as have room."""
    shown: list[str] = []
    room = ANSWER_MOST
    for line in reversed(lines):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        shown.append(line)
    return "\n".join(reversed(shown))


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
