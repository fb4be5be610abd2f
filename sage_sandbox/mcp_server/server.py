"""The server: which tools, resources and prompts there are, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from mcp.server.mcpserver import MCPServer

import sage_sandbox
from sage_sandbox.mcp_server.arguments import Arguments
from sage_sandbox.mcp_server.cancelling import Cancellations
from sage_sandbox.mcp_server.following import Follower
from sage_sandbox.mcp_server.prompts import add_prompts
from sage_sandbox.mcp_server.resources import add_resources
from sage_sandbox.mcp_server.run_tasks import RunTasks
from sage_sandbox.mcp_server.runs import Runs
from sage_sandbox.mcp_server.tasks import Tasks, TasksExtension
from sage_sandbox.mcp_server.tools import add_tools, run_answer

INSTRUCTIONS: Final = """\
Runs workflows: phases of operations, each in a kernel sandbox of its own, saved phase by phase.
Start one with sage_workflow_execute. It returns the results, or after `wait` seconds a handle while the run goes on \
by itself; then call sage_workflow_status with wait_s. A run that is paused, failed or cancelled goes on with \
sage_workflow_resume, without repeating what is done.
Errors begin with a code and end with a hint. NOT_GRANTED means that only the user can go on: show them the command.
Templates are named, never given as paths: they lie in .sage/templates. Check new ones with sage_workflow_validate."""


def make_server(
    project: Path, environ: Mapping[str, str], *, tasks: Callable[[Tasks], Tasks] = lambda ours: ours
) -> MCPServer[dict[str, Any]]:
    """The server of one project, not yet connected to anybody. Keys and granted values are read in ``environ``.

    ``tasks`` makes of the tasks that runs are those that the server knows: for a server with other tools, too.
    """
    runs = Runs(project, environ)
    extension = TasksExtension(tasks(RunTasks(runs, partial(run_answer, runs))))
    cancellations, arguments = Cancellations(), Arguments()
    server = MCPServer[dict[str, Any]](
        "sage-sandbox",
        title="sage-sandbox",
        instructions=INSTRUCTIONS,
        version=sage_sandbox.__version__,
        extensions=[extension],
        middleware=[cancellations, arguments, extension.check_listening],
        log_level="WARNING",
    )
    add_tools(server, runs, Follower(runs, cancellations))
    arguments.guard(server)
    add_resources(server, runs)
    add_prompts(server, runs)
    return server
