"""A walk over the six tools on a real project: what any client must see, whichever it is.

`lay_out` makes the project; `walk` and `provoke` go through it with a function that calls a tool, one for each client.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sage_sandbox.grants.memory import Memory
from sage_sandbox.mcp_server.refusals import Code
from sage_sandbox.policy import parse_grant
from sage_sandbox.workflow.loading import load

Say = Callable[..., "Said"]
"""Calls a tool by the end of its name, with its arguments by name."""


@dataclass(frozen=True)
class Said:
    """What came back of a call: its text, and its document if there is one."""

    error: bool
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The code that an error's text begins with."""
        found = re.match(r"(?:Error executing tool \w+: )?([A-Z_]+): .+\nhint: .+", self.text, re.DOTALL)
        assert self.error, self.text
        assert found, self.text
        return found.group(1)


def _python(phase: str, code: str, *needs: str, **more: Any) -> dict[str, Any]:
    operations = {"type": "python", "code": f"def run():\n    {code}", **more}
    return {"id": phase, "name": phase.title(), "dependencies": list(needs), "operations": operations}


WAIT = """\
import time
    while open("gate").read() != "open":
        time.sleep(0.05)
    return "worked"
"""
"""An operation that ends when the test says so: a file that is granted is the file itself."""


def lay_out(project: Path, environ: Mapping[str, str]) -> None:
    """A project with templates that work, that wait at the gate, and that are wrong."""
    templates = project / ".sage" / "templates"
    templates.mkdir(parents=True)
    (project / "notes.txt").write_text("three\nlines\nhere\n")
    (project / "gate").write_text("closed")
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"gone": {"command": "/bin/false"}}}))
    tool = {"type": "mcp", "tool": "gone/ask"}
    for name, phases in {
        "steps": [
            _python("collect", "return {'files': 3}"),
            _python("work", WAIT, "collect", policy={"read": ["gate"]}),
            _python("report", "return 'reported'", "work"),
        ],
        "cyclic": [_python("a", "return 1", "b"), _python("b", "return 2", "a")],
        "broken": [_python("a", "return 1", "nowhere")],
        "asking": [_python("a", "return 1", policy={"read": ["notes.txt"]})],
        "served": [{"id": "a", "name": "A", "operations": tool}],
    }.items():
        (templates / f"{name}.json").write_text(json.dumps({"name": name, "phases": phases}))
    # As if the user had answered the questions with "always".
    memory = Memory.of_user(environ)
    memory.remember(load(templates / "served.json"), project, [parse_grant("tool:gone/ask")])
    memory.remember(load(templates / "steps.json"), project, [parse_grant(f"read:{project / 'gate'}")])
    approve = [sys.executable, "-P", "-m", "sage_sandbox", "tools", "--approve", "gone", "--server", "gone"]
    subprocess.run(approve, cwd=project, env=dict(environ), check=True, capture_output=True)


def walk(say: Say, project: Path, *, follows: bool) -> None:
    """Execute, status, cancel, resume, list, validate. Who ``follows`` tasks comes back when a run has ended only."""
    valid = say("validate", template="steps")
    assert {"valid": True, "graph": {"nodes": 3, "edges": 2, "depth": 3}}.items() <= valid.data.items()

    with ThreadPoolExecutor() as aside:
        begun = aside.submit(say, "execute", feature="walk", template="steps", options={"wait": 0})
        if not follows:
            assert (True, "running") == (begun.result().data["success"], begun.result().data["status"])
        seen = _reached(say, "walk")
        assert ("steps", "running", 3) == (seen.data["template"], seen.data["status"], seen.data["progress"]["total"])
        ended = say("cancel", feature="walk")
        assert (True, "walk", True) == tuple(ended.data[name] for name in ("success", "feature", "checkpointSaved"))
        begun.exception()  # whatever a client makes of a task that was cancelled
    assert "cancelled" == say("status", feature="walk").data["status"]
    assert ["walk"] == [one["feature"] for one in say("list", filter="cancelled").data["workflows"]]

    (project / "gate").write_text("open")
    done = say("resume", feature="walk")
    assert (True, "completed", "work") == tuple(done.data[name] for name in ("success", "status", "resumedFrom"))
    assert ["collect", "work", "report"] == [phase["id"] for phase in done.data["results"]["phases"]]

    seen = say("status", feature="walk")
    assert ("completed", 100) == (seen.data["status"], seen.data["progress"]["percentage"])
    listed = say("list").data["workflows"]
    assert [("walk", "completed", 100)] == [(one["feature"], one["status"], one["progress"]) for one in listed]
    assert [] == say("list", filter="running").data["workflows"]


def provoke(say: Say, project: Path, home: Path) -> None:
    """Each of the error codes, where it belongs."""
    state = project / ".sage" / "state"
    late = {"timeout": 1000, "wait": 60}
    seen = {
        "WORKFLOW_VALIDATION_ERROR": say("execute", feature="f", template="broken"),
        "CYCLE_DETECTED": say("execute", feature="f", template="cyclic"),
        "NOT_GRANTED": say("execute", feature="f", template="asking"),
        "TIMEOUT_EXCEEDED": say("execute", feature="late", template="steps", options=late),
        "EXTERNAL_API_FAILURE": say("execute", feature="served", template="served", options={"wait": 60}),
        "NO_CHECKPOINT_FOUND": say("resume", feature="nobody"),
        "INVALID_PHASE": say("resume", feature="late", fromPhase="nowhere"),
        "WORKFLOW_NOT_FOUND": say("status", feature="nobody"),
        "WORKFLOW_NOT_RUNNING": say("cancel", feature="late"),
        "CHECKPOINT_SAVE_FAILED": _cancel_unsaved(say, state),
        "FILESYSTEM_ERROR": _execute_nowhere(say, home),
    }
    next((state / "workflow-late").glob("collect.*.json")).unlink()
    seen["STATE_CORRUPTED"] = say("resume", feature="late")

    found = {code: said.code for code, said in seen.items()}
    assert {code: code for code in get_args(Code)} == found


def _cancel_unsaved(say: Say, state: Path) -> Said:
    """Cancel a run that has nowhere to save what it did."""
    with ThreadPoolExecutor() as aside:
        begun = aside.submit(say, "execute", feature="unsaved", template="steps", options={"wait": 0})
        _reached(say, "unsaved")
        shutil.rmtree(state / "workflow-unsaved")
        ended = say("cancel", feature="unsaved")
        begun.exception()
    return ended


def _execute_nowhere(say: Say, home: Path) -> Said:
    """Start a run whose user has no place for what lies outside the project: something else is there."""
    place = home / ".local" / "state" / "sage-sandbox"
    away = place.rename(place.with_name("away"))
    place.touch()
    said = say("execute", feature="nowhere", template="steps", options={"wait": 0})
    place.unlink()
    away.rename(place)
    return said


def _reached(say: Say, feature: str) -> Said:
    """How a run stands once it is at the gate."""
    until = time.monotonic() + 60
    while (said := say("status", feature=feature)).error or said.data["progress"]["completed"] < 1:
        assert time.monotonic() < until, said.text
    return said
